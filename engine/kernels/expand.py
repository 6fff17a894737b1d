"""Expand: whether float copies of quantized weights are kept for large batches, where a column has use for them."""

from typing import Literal

Expand = Literal["auto", "always", "never"]
EXPAND_HELP = "keep float copies of the weights for large batches on a GPU (auto: if memory allows)"
