"""EngineOptions: how an engine is set up, as plain data. Imports no arrays: who only passes it on needs none."""

from dataclasses import dataclass
from typing import Literal

from engine.kernels.expand import Expand

CacheDtype = Literal["float32", "float16", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much an engine may hold, and how much it does in a step."""

    cache_bytes: int = 1 << 30  # at most
    cache_dtype: CacheDtype | None = None  # None: as the kernels like it best
    block_size: int = 16
    max_batch_tokens: int = 512
    max_sequences: int = 64
    max_context: int | None = None  # None: what the model was made for
    max_adapter_bytes: int = 2 << 30
    expand: Expand = "auto"  # keep float copies of quantized weights for large batches
