"""Whether the C++ extension can be used here, and if not, why and what to do about it."""

import importlib
import importlib.metadata
import importlib.util

import mlx.core as mx

NAME = "engine.kernels.cpu._native"
HOW = "install a C++20 compiler, then, in the project's folder: pip install --force-reinstall --no-deps ."


def missing_reason() -> str | None:
    """One sentence if the extension is absent or was built for another MLX; None if it is ready."""
    if importlib.util.find_spec(NAME) is None:
        return f"the CPU kernels were not built; the slow path is in use (to get the fast one, {HOW})"
    installed = importlib.metadata.version("mlx")
    try:
        native = importlib.import_module(NAME)
        native.forget(mx.array(0.0))  # an array passes only between extensions of one nanobind
    except (ImportError, TypeError) as trouble:
        why = f"do not go together with mlx {installed}: {str(trouble).splitlines()[0]}"
    else:
        if native.mlx_version == installed:
            return None
        why = f"were built for mlx {native.mlx_version}, and {installed} is installed"
    return f"the CPU kernels {why}; the slow path is in use (to get the fast one, {HOW})"
