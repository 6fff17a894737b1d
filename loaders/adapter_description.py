"""AdapterDescription: what an adapter's files say, its tensors unread, and whether it fits a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.config import ModelConfig, module_sizes
from engine.refusal import BrokenFile, Refusal, Unsupported, shown
from loaders.adapter_format import CONFIG_FILE, AdapterFormat, Config, Slot, module_path
from loaders.json_file import read_json
from loaders.mlx_lm_adapter import MLX_LM
from loaders.peft_adapter import PEFT
from loaders.safetensors import Header

FORMATS = {form.name: form for form in (MLX_LM, PEFT)}
FLOATS = ("F32", "F16", "BF16")
MAX_RANK = 1024
MAX_MATRICES = 2 * 7 * 1024  # of 1024 layers

Place = tuple[int, str]  # layer, module


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """One module's pair, as the files describe it."""

    num_in: int
    rank: int
    num_out: int
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterDescription:
    """What an adapter's files say, its tensors unread."""

    path: Path
    format: str
    base: str | None  # the model it names as its own
    shapes: Mapping[Place, ModuleShape]
    num_bytes: int

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(shape.rank for shape in self.shapes.values())

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(sorted({module for _, module in self.shapes}))

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({layer for layer, _ in self.shapes}))

    @property
    def scale(self) -> float | None:
        """What all modules multiply with; None where they differ."""
        scales = {shape.scale for shape in self.shapes.values()}
        return scales.pop() if len(scales) == 1 else None


def describe(form: AdapterFormat, path: Path, header: Header) -> AdapterDescription:
    config = read_json(path / CONFIG_FILE)
    try:
        form.check(config)
        shapes = shapes_of(form, {**config, "__metadata__": header.metadata}, header)
    except Refusal as refusal:
        raise type(refusal)(f"{path}: {refusal.message}", refusal.param) from None
    return AdapterDescription(path, form.name, form.base_of(config), shapes, header.num_bytes)


def format_of(path: Path) -> AdapterFormat:
    found = [form for form in FORMATS.values() if (path / form.tensors_file).is_file()]
    if len(found) == 1 and (path / CONFIG_FILE).is_file():
        return found[0]
    if len(found) > 1:
        files = " and ".join(form.tensors_file for form in found)
        raise BrokenFile(f"{path} has {files}: it is not clear which of them is the adapter")
    if found:
        raise BrokenFile(f"{path} has {found[0].tensors_file} without {CONFIG_FILE}, which says how strong it is")
    if (path / "adapter_model.bin").is_file():
        raise Unsupported(f"{path} has adapter_model.bin, a pickle, which can run code; a safetensors file is wanted")
    wanted = " or ".join(f"{form.tensors_file} ({form.name})" for form in FORMATS.values())
    raise BrokenFile(f"{path} is no adapter: a directory with {CONFIG_FILE} and {wanted} is wanted")


def shapes_of(form: AdapterFormat, config: Config, header: Header) -> dict[Place, ModuleShape]:
    """Every module's shapes, from the names and shapes of the tensors."""
    if not header.tensors:
        raise BrokenFile("the adapter has no tensors")
    if len(header.tensors) > MAX_MATRICES:
        raise Unsupported(f"the adapter has {len(header.tensors)} tensors; at most {MAX_MATRICES} are taken")
    halves: dict[Slot, tuple[int, int]] = {}
    for name, entry in header.tensors.items():
        slot = form.slot_of(name)
        if slot in halves:
            raise BrokenFile(f"{slot.path} has its lora_{slot.half} twice")
        if entry.dtype not in FLOATS:
            raise Unsupported(f"{shown(name)} has the type {entry.dtype}; known are {', '.join(FLOATS)}")
        if len(entry.shape) != 2:
            raise BrokenFile(f"{shown(name)} has {len(entry.shape)} dimensions; an adapter's matrices have 2")
        rows, columns = entry.shape
        halves[slot] = (columns, rows) if form.is_transposed else (rows, columns)
    return {
        (slot.layer, slot.module): shape_of(form, config, slot, halves)
        for slot in sorted({Slot(slot.layer, slot.module, "a") for slot in halves})
    }


def shape_of(form: AdapterFormat, config: Config, first: Slot, halves: Mapping[Slot, tuple[int, int]]) -> ModuleShape:
    second = Slot(first.layer, first.module, "b")
    if first not in halves or second not in halves:
        present, absent = ("a", "b") if first in halves else ("b", "a")
        raise BrokenFile(f"{first.path} has a lora_{present} without its lora_{absent}")
    (num_in, rank), (other_rank, num_out) = halves[first], halves[second]
    if rank != other_rank:
        raise BrokenFile(f"{first.path} has the rank {rank} in lora_a and {other_rank} in lora_b")
    if not 1 <= rank <= MAX_RANK:
        raise Unsupported(f"{first.path} has the rank {rank}; 1 to {MAX_RANK} are taken")
    return ModuleShape(num_in, rank, num_out, form.scale_of(config, first, rank))


def misfit_of(shapes: Mapping[Place, ModuleShape], config: ModelConfig) -> str | None:
    sizes = module_sizes(config)
    for (layer, module), shape in shapes.items():
        if layer >= config.num_layers:
            return f"it changes layer {layer}; the model has layers 0 to {config.num_layers - 1}"
        if (shape.num_in, shape.num_out) != sizes[module]:
            num_in, num_out = sizes[module]
            found = f"{module_path(layer, module)} maps {shape.num_in} to {shape.num_out}"
            return f"{found}; the model's maps {num_in} to {num_out}"
    return None
