"""What config.json says of quantization: one format for all, and exceptions by a module's path. Knows no tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from engine.quantized import FLOAT_FORMATS, Mode, check_format
from engine.refusal import Unsupported, shown

SETTINGS = ("bits", "group_size", "mode")


@dataclass(frozen=True, slots=True)
class Format:
    """How the weights of a module are packed."""

    bits: int
    group_size: int
    mode: Mode = "affine"


@dataclass(frozen=True, slots=True)
class Quantization:
    """The format of each module; `exceptions` hold None where a module is kept in floats."""

    default: Format | None = None
    exceptions: Mapping[str, Format | None] = field(default_factory=dict)

    def format_of(self, path: str) -> Format | None:
        return self.exceptions.get(path, self.default)


def parse_quantization(raw: Mapping[str, Any]) -> Quantization:
    """Read `quantization`, or `quantization_config` where it is MLX's, out of a config.json."""
    settings = raw.get("quantization")
    if settings is None:
        settings = raw.get("quantization_config")
    if settings is None:
        return Quantization()
    if not isinstance(settings, Mapping):
        raise Unsupported(f"quantization is a {type(settings).__name__}; an object is wanted", "quantization")
    if "bits" not in settings and "mode" not in settings:
        method = settings.get("quant_method", "unknown")
        raise Unsupported(f"quantization method is {shown(method)}; only MLX's own formats are read", "quantization")
    default = parse_format(settings, "quantization")
    exceptions = {
        path: parse_exception(path, value, default)
        for path, value in settings.items()
        if path not in SETTINGS and path != "quant_method"
    }
    return Quantization(default, exceptions)


def parse_exception(path: str, value: Any, default: Format) -> Format | None:
    if isinstance(value, Mapping):
        return parse_format(value, f"quantization of {path}")
    if isinstance(value, bool):
        return default if value else None
    raise Unsupported(f"quantization of {shown(path)} is {shown(value)}; an object or false is wanted", "quantization")


def parse_format(settings: Mapping[str, Any], where: str) -> Format:
    mode = settings.get("mode", "affine")
    bits, group_size = settings.get("bits"), settings.get("group_size")
    if isinstance(mode, str) and mode in FLOAT_FORMATS:  # these have one size each, which need not be said
        bits = FLOAT_FORMATS[mode][0] if bits is None else bits
        group_size = FLOAT_FORMATS[mode][1] if group_size is None else group_size
    for name, number in (("bits", bits), ("group_size", group_size)):
        if type(number) is not int:
            raise Unsupported(f"{where} has {name} {shown(number)}; a whole number is wanted", name)
    if not isinstance(mode, str):
        raise Unsupported(f"{where} has the mode {shown(mode)}; a name is wanted", "mode")
    check_format(cast(int, bits), cast(int, group_size), mode)
    return Format(cast(int, bits), cast(int, group_size), cast(Mode, mode))
