"""AdapterFormat: how one kind of file keeps adapters: a table of functions, so that loading is said once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.adapter import Adapter
from engine.refusal import BrokenFile, Unsupported, shown
from engine.weights import BLOCK_OF

Config = Mapping[str, Any]  # what adapter_config.json holds
CONFIG_FILE = "adapter_config.json"
MAX_SCALE = 1e4  # far beyond any that was trained, and far from where float32 ends

Half = Literal["a", "b"]
HALVES: tuple[Half, Half] = ("a", "b")


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """Where a matrix belongs: the first (a) or second (b) half of one module's pair."""

    layer: int
    module: str
    half: Half

    @property
    def path(self) -> str:
        """The module's name in the model, as both formats spell it."""
        return module_path(self.layer, self.module)


@dataclass(frozen=True, slots=True)
class AdapterFormat:
    """One format of a directory with adapter_config.json and a file of tensors."""

    name: str
    tensors_file: str
    is_transposed: bool  # a as (rank, in) and b as (out, rank)
    check: Callable[[Config], None]  # raises the refusal that a config deserves
    base_of: Callable[[Config], str | None]
    slot_of: Callable[[str], Slot]  # raises the refusal that a tensor's name deserves
    tensor_name: Callable[[Slot], str]
    scale_of: Callable[[Config, Slot, int], float]  # of a module with this rank
    config_of: Callable[[Adapter, str | None], dict[str, Any]]
    metadata_of: Callable[[Adapter], dict[str, str]]


def module_path(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{BLOCK_OF[module]}{module}"


def finite(value: Any, what: str) -> float:
    """A number out of a config."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BrokenFile(f"{what} is {shown(value)}; a number is wanted")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BrokenFile(f"{what} is {shown(value)}; a finite number is wanted")
    return number


def bounded(scale: float, origin: str) -> float:
    """A scale under which numbers stay finite; `origin` says what made it."""
    if abs(scale) > MAX_SCALE:
        raise Unsupported(f"{origin}: it would multiply by {scale:g}; at most {MAX_SCALE:g} is taken")
    return scale
