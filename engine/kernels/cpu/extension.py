"""Whether the C++ extension can be used here, and if not, why and what to do about it."""

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import mlx.core as mx

NAME = "engine.kernels.cpu._native"
HOW = "install a C++20 compiler, then, in the project's folder: pip install --force-reinstall --no-deps ."

# A copy of the code alone, as a Ray job's upload is, finds the extension where genserve is installed.
sys.modules[__package__].__path__ += [f"{place}/engine/kernels/cpu" for place in sys.path]


def missing_reason() -> str | None:
    """One sentence if the extension is absent or does not fit MLX or this code; None if it is ready."""
    if importlib.util.find_spec(NAME) is None:
        return f"the CPU kernels were not built; the slow path is in use (to get the fast one, {HOW})"
    installed = importlib.metadata.version("mlx")
    try:
        native = importlib.import_module(NAME)
        native.forget(mx.array(0.0))  # an array passes only between extensions of one nanobind
    except (ImportError, TypeError) as trouble:
        why = f"do not go together with mlx {installed}: {str(trouble).splitlines()[0]}"
    else:
        if native.mlx_version != installed:
            why = f"were built for mlx {native.mlx_version}, and {installed} is installed"
        elif interface_beside(str(native.__file__)) != interface_beside(__file__):
            why = f"at {native.__file__} are those of another version of genserve"
        else:
            return None
    return f"the CPU kernels {why}; the slow path is in use (to get the fast one, {HOW})"


def interface_beside(file: str) -> bytes:
    """What the extension in a directory offers."""
    stub = Path(file).with_name("_native.pyi")
    return stub.read_bytes() if stub.is_file() else b""
