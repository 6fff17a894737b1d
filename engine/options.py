"""EngineOptions: how an engine is set up, as plain data. Imports no arrays: who only passes it on needs none."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from engine.kernels.expand import Expand
from engine.limits import check_integer
from engine.refusal import BadRequest, shown

CacheDtype = Literal["float32", "float16", "bfloat16", "int8"]
# name, smallest, largest
INTEGERS = (
    ("cache_bytes", 1, 2**62),
    ("block_size", 1, 2**20),
    ("max_batch_tokens", 1, 2**24),
    ("max_sequences", 1, 2**20),
    ("max_adapter_bytes", 0, 2**62),
)


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

    def __post_init__(self) -> None:
        for name, low, high in INTEGERS:
            check_integer(name, getattr(self, name), low, high)
        if self.max_context is not None:
            check_integer("max_context", self.max_context, 1, 2**31 - 1)
        check_choice("cache_dtype", self.cache_dtype, (*get_args(CacheDtype), None))
        check_choice("expand", self.expand, get_args(Expand))


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise BadRequest(f"{name} must be one of {', '.join(map(str, choices))}; got {shown(value)}", name)
