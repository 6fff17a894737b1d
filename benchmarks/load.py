"""Seconds and peak memory to load a model, each in a fresh process, files in the system's cache.

    python -m benchmarks.load                 SmolLM2, and a made-up 4-bit checkpoint of 2 GB in a temporary directory
    python -m benchmarks.load PLACE [...]     models of your own

Memory is the high-water mark of the process beyond what it was with MLX and the loaders imported. It includes pages of
the file that were mapped while they were copied.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from benchmarks.command_line import told_in_a_sentence
from loaders.atomic_file import atomic_file
from loaders.checkpoint import load_model
from loaders.progress import ignore_progress
from loaders.safetensors import SafetensorsWriter
from loaders.sources import locate

WIDTH, INNER, HEADS, VOCABULARY, GROUP = 4096, 11008, 32, 32000, 64
NUM_LAYERS = 17  # with these numbers 2 GB in 4 bit
MIB = 1 << 20


def peak_bytes() -> int:
    """The most memory that this process has had."""
    if platform.system() == "Darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in ru_maxrss what the parent had before it became this program.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def measure(source: str) -> None:
    """Load one model and print seconds and bytes: what runs in the fresh process."""
    path = locate(source, ignore_progress)
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    for file in files:
        read_through(file)
    mx.eval(mx.zeros(1))
    before = peak_bytes()
    started = time.perf_counter()
    model = load_model(source)
    seconds = time.perf_counter() - started
    num_bytes = sum(file.stat().st_size for file in files)
    print(json.dumps([seconds, num_bytes, peak_bytes() - before, model.config.num_layers]))


def read_through(path: Path) -> None:
    """Have it in the system's cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def write_made_up(directory: Path, num_layers: int = NUM_LAYERS) -> Path:
    """A checkpoint with the shapes of a real one and words that mean nothing, written tensor by tensor."""
    config = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "quantization": {"group_size": GROUP, "bits": 4},
    }
    (directory / "config.json").write_text(json.dumps(config))
    matrices = {"model.embed_tokens": (VOCABULARY, WIDTH), "lm_head": (VOCABULARY, WIDTH)}
    vectors = ["model.norm.weight"]
    for index in range(num_layers):
        prefix = f"model.layers.{index}"
        matrices |= {f"{prefix}.self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
        matrices |= {f"{prefix}.mlp.{name}_proj": (INNER, WIDTH) for name in ("gate", "up")}
        matrices[f"{prefix}.mlp.down_proj"] = (WIDTH, INNER)
        vectors += [f"{prefix}.input_layernorm.weight", f"{prefix}.post_attention_layernorm.weight"]
    planned: dict[str, tuple[mx.Dtype, tuple[int, ...]]] = dict.fromkeys(vectors, (mx.float16, (WIDTH,)))
    for path, (rows, columns) in matrices.items():
        planned[f"{path}.weight"] = (mx.uint32, (rows, columns // 8))
        planned[f"{path}.scales"] = planned[f"{path}.biases"] = (mx.float16, (rows, columns // GROUP))
    rng = np.random.default_rng(0)
    with atomic_file(directory / "model.safetensors") as file:
        writer = SafetensorsWriter(file, planned, {})
        for name, (dtype, shape) in planned.items():
            words = rng.integers(0, 2**32, shape, np.uint32) if dtype == mx.uint32 else np.ones(shape, np.float16)
            writer.write(name, mx.array(words))
        writer.finish()
    return directory


def row(label: str, source: str) -> None:
    command = [sys.executable, "-m", "benchmarks.load", "--measure", source]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:  # it has said why
        sys.exit(done.returncode)
    seconds, num_bytes, peak, num_layers = json.loads(done.stdout)
    print(
        f"{label:<24}{num_layers:>7}{num_bytes / MIB:>10.0f}{seconds:>10.2f}{peak / MIB:>10.0f}{peak / num_bytes:>8.2f}"
    )


@told_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", metavar="PLACE")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is None:
        compare(given.places)
    else:
        measure(given.measure)


def compare(sources: list[str]) -> None:
    print(f"{'model':<24}{'layers':>7}{'MiB':>10}{'seconds':>10}{'peak MiB':>10}{'x file':>8}")
    for source in sources:
        row(Path(source).name, source)
    if not sources:
        row("smollm2", "smollm2")
        with tempfile.TemporaryDirectory(prefix="genserve-bench-") as directory:
            row("made up, 4 bit", str(write_made_up(Path(directory))))


if __name__ == "__main__":
    main()
