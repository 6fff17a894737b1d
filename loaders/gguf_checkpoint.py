"""A GGUF file -> Model: its tensors under the names that safetensors checkpoints use. Knows no bytes of blocks."""

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.refusal import BrokenFile
from engine.weights import Model
from loaders.assembly import assemble
from loaders.config import CheckpointConfig
from loaders.fingerprint import SAMPLE_BYTES, fingerprint
from loaders.gguf import GGUFFile, GGUFTensor, read_gguf
from loaders.gguf_blocks import FLOATS, floats, matrix
from loaders.gguf_config import ROPE_FREQS, config_of
from loaders.progress import OnProgress, Progress

MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def load_gguf(path: Path, on_progress: OnProgress) -> Model:
    """Load a model from one GGUF file, every weight with the bits it has there."""
    gguf = read_gguf(path)
    config = config_of(gguf)
    checkpoint = GGUFCheckpoint(gguf, config, on_progress)
    weights = assemble(config.model, checkpoint)
    checkpoint.finish()
    return Model(config.model, weights, fingerprint(identity(gguf)))


class GGUFCheckpoint:
    """The tensors of a GGUF file by their safetensors names; what nobody looked at is reported."""

    def __init__(self, gguf: GGUFFile, config: CheckpointConfig, on_progress: OnProgress) -> None:
        self._gguf = gguf
        self._config = config
        self._on_progress = on_progress
        self._unread = set(gguf.tensors) - {ROPE_FREQS}
        self._num_read = 0

    def vector(self, name: str, size: int) -> mx.array:
        path, _, part = name.rpartition(".")
        theirs = f"{gguf_path(path)}.{part}"
        entry = self._entry(theirs)
        if entry.shape != (size,) or entry.kind not in FLOATS:
            raise self._misfit(theirs, f"{size} floats", entry)
        values = floats(self._gguf.mapped.view(entry.start, entry.stop), entry.kind, (size,))
        order = self._row_order(path, size)
        self._done(theirs, entry)
        return values if order is None else values[mx.array(order)]

    def matrix(self, path: str, shape: tuple[int, int]) -> mx.array:
        theirs = f"{gguf_path(path)}.weight"
        entry = self._entry(theirs)
        if entry.shape != shape:
            raise self._misfit(theirs, f"shape {shape}", entry)
        rows = self._gguf.mapped.view(entry.start, entry.stop).reshape(shape[0], -1)  # (out, bytes a row)
        order = self._row_order(path, shape[0])
        weight = matrix(rows if order is None else rows[order], entry.kind, theirs)
        mx.eval(weight)
        self._done(theirs, entry)
        return weight

    def has_bias(self, path: str) -> bool:
        return path.rpartition(".")[2] in self._config.biased or f"{gguf_path(path)}.bias" in self._gguf.tensors

    def finish(self) -> None:
        """Refuse a file with tensors that the model has no place for."""
        if self._unread:
            architecture = self._config.model.architecture
            raise BrokenFile(f"{self._gguf.path} has tensors that a {architecture} model does not: {min(self._unread)}")

    def _row_order(self, path: str, num_rows: int) -> NDArray[np.int64] | None:
        """Where the rows of a matrix are in the file, if not in their order.

        Files of the llama architecture have the two halves of each q and k head interleaved, as ggml's rotary embedding
        wants them there; here they are apart.
        """
        model = self._config.model
        module = path.rpartition(".")[2]
        if model.architecture != "llama" or module not in ("q_proj", "k_proj"):
            return None
        return np.arange(num_rows).reshape(-1, model.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)

    def _entry(self, name: str) -> GGUFTensor:
        entry = self._gguf.tensors.get(name)
        if entry is None:
            raise BrokenFile(f"{self._gguf.path} lacks the tensor {name}")
        return entry

    def _done(self, name: str, entry: GGUFTensor) -> None:
        self._gguf.mapped.forget(entry.start, entry.stop)
        self._unread.discard(name)
        self._num_read += entry.stop - entry.start
        self._on_progress(Progress("loading weights", self._num_read, self._gguf.mapped.size))

    def _misfit(self, name: str, wanted: str, entry: GGUFTensor) -> BrokenFile:
        return BrokenFile(f"{self._gguf.path}: {name} is {entry.kind} of shape {entry.shape}; {wanted} is wanted")


def gguf_path(path: str) -> str:
    """What a GGUF file calls a module: "model.layers.3.mlp.up_proj" -> "blk.3.ffn_up"."""
    if not path.startswith("model.layers."):
        return MODULES[path]
    _, _, index, module = path.split(".", 3)
    return f"blk.{index}.{MODULES[module]}"


def identity(gguf: GGUFFile) -> Iterator[bytes | str | int]:
    yield gguf.digest
    yield gguf.mapped.size
    for tensor in gguf.tensors.values():
        yield gguf.mapped.sample(tensor.start, tensor.stop, SAMPLE_BYTES)
