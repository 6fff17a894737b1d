"""Whether the C++ extension can be used here, and if not, why and what to do about it."""

import importlib
import importlib.metadata
import importlib.util

NAME = "engine.kernels.cpu._native"
HOW = "a C++20 compiler, then: pip install --no-build-isolation --force-reinstall --no-deps ."


def missing_reason() -> str | None:
    """One sentence if the extension is absent or was built for another MLX; None if it is ready."""
    if importlib.util.find_spec(NAME) is None:
        return f"the CPU kernels were not built; the slow path is in use (to get the fast one: {HOW})"
    built_for = importlib.import_module(NAME).mlx_version
    installed = importlib.metadata.version("mlx")
    if built_for != installed:
        return f"the CPU kernels were built for mlx {built_for} and {installed} is installed (to build again: {HOW})"
    return None
