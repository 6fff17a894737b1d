"""The build of the CPU kernels, beside what pyproject.toml says. Without a compiler the install still succeeds.

On macOS, where Metal is used, nothing is built unless GENSERVE_BUILD_CPU=1. GENSERVE_BUILD_CPU=0 builds nothing
anywhere, and with 1 a failure is one: what a build of wheels wants.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path(__file__).parent / "engine" / "kernels" / "cpu" / "native"
WISH = os.environ.get("GENSERVE_BUILD_CPU")
HOW = "for the fast one have a C++20 compiler and install again"
IS_WANTED = WISH == "1" or (WISH is None and sys.platform == "linux")


class BuildNative(build_ext):
    """CMake, in place of setuptools' own compiler calls."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / ext.name
        try:
            build.mkdir(parents=True, exist_ok=True)
            configure = [f"-DPython_EXECUTABLE={sys.executable}", f"-DGENSERVE_OUTPUT={output}"]
            subprocess.run([cmake(), "-S", str(SOURCES), "-B", str(build), *configure], check=True)
            subprocess.run([cmake(), "--build", str(build), "--parallel", str(os.cpu_count() or 1)], check=True)
        except (OSError, subprocess.CalledProcessError) as trouble:
            if WISH == "1":
                raise
            self.warn(f"the CPU kernels were not built, and the slow path will be in use; {HOW}: {trouble}")

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / "engine/kernels/cpu").glob("_native*.so")]


def cmake() -> str:
    """The one that came with the build requirements, or the system's."""
    try:
        from cmake import CMAKE_BIN_DIR
    except ImportError:
        return "cmake"
    return os.path.join(CMAKE_BIN_DIR, "cmake")


setup(
    ext_modules=[Extension("engine.kernels.cpu._native", sources=[], optional=True)] if IS_WANTED else [],
    cmdclass={"build_ext": BuildNative},
)
