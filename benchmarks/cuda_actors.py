"""64 streams of Qwen3-8B's shapes: on the bare engine, and through Ray actors. What `benchmarks.cuda actors` runs.

python -m benchmarks.cuda_actors bare
python -m benchmarks.cuda_actors actors
"""

import argparse
import tempfile
import time
from statistics import median

from actors import tree, watchdog
from actors.model_choice import ModelChoice
from actors.tokenizer_loading import ByteTokenizer
from actors.tree import TreeNode
from benchmarks.cuda_models import CONFIGS, engine_of, made_up
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.request import Request, Sampling

STREAMS, PROMPT, ANSWER = 64, 256, 512
WATCHDOG = "genserve.watchdog"
WORDS = {"max_tokens": ANSWER, "temperature": 0.0, "ignore_eos": True}


def make_engine(choice: ModelChoice) -> Engine:
    model = made_up(CONFIGS["Qwen3-8B"])
    return engine_of(model, choose(model.config, model.weights, 16, expand="never"), STREAMS, PROMPT + ANSWER)


def prompts(number: int) -> list[str]:
    return [f"{number:>4} {index:>4} ".ljust(PROMPT, "x") for index in range(STREAMS)]


def run_bare(engine: Engine, number: int) -> float:
    encode = ByteTokenizer().encode
    began = time.perf_counter()
    for index, prompt in enumerate(prompts(number)):
        engine.add(Request(f"{number}-{index}", tuple(encode(prompt)), Sampling(**WORDS)))  # type: ignore[arg-type]
    while engine.has_work:
        engine.step()
    return time.perf_counter() - began


def run_actors(choice: ModelChoice) -> list[float]:
    from actors.system import start_system, stop
    from actors.system_config import SystemConfig

    with tempfile.TemporaryDirectory(prefix="genserve-bench-") as directory:
        began = time.perf_counter()
        client = start_system(SystemConfig(choice, directory), wait_seconds=300)
        print(f"ready after {time.perf_counter() - began:.0f} s", flush=True)
        seconds = []
        try:
            for number in range(4):
                began = time.perf_counter()
                client.batched_run(prompts(number), **WORDS)
                seconds.append(time.perf_counter() - began)
        finally:  # who died meanwhile, and why
            restarted = [node for node in below(tree.status()) if node.restarts]
            kills = watchdog.stats(WATCHDOG).kills
            if restarted or kills:
                print(f"killed for lack of progress: {kills}; restarted: {restarted}", flush=True)
        stop()
    return seconds


def below(node: TreeNode | None) -> list[TreeNode]:
    return [] if node is None else [node, *(found for child in node.children for found in below(child))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("bare", "actors"))
    mode = parser.parse_args().mode
    path = "benchmarks.cuda_actors:make_engine"
    choice = ModelChoice("made up", make_engine=path, make_tokenizer="actors.tokenizer_loading:bytes_tokenizer")
    if mode == "bare":
        engine = make_engine(choice)
        seconds = [run_bare(engine, number) for number in range(4)]
    else:
        seconds = run_actors(choice)
    middle = median(seconds[1:])
    print(f"{mode:<7}{STREAMS * ANSWER / middle:>10,.0f} tokens/s, prompts of {PROMPT} included", flush=True)
    print(f"seconds, one run after the other: {', '.join(f'{one:.2f}' for one in seconds)}", flush=True)


if __name__ == "__main__":
    main()
