"""AdapterFolder: the one directory that adapters are loaded from, by the names of its entries. Nothing outside it."""

import os
import re
from pathlib import Path

from engine.refusal import BadRequest, UnknownAdapter

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def check_name(name: str, param: str) -> None:
    """A name is a name, never a path."""
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"{param} must be 1 to 64 letters, digits, dots, dashes or underscores; no path is taken", param
        )


def check_folder(directory: Path) -> None:
    """Refuse what adapters can never be loaded from, before anybody tries."""
    if not os.path.isdir(directory):  # where pathlib raises, as for an endless name, this says no
        raise BadRequest(f"{directory} is no directory; one that adapters are loaded from is wanted", "adapters")


class AdapterFolder:
    """`AdapterFolder(Path("adapters")).path_of("voice")`"""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()

    def names(self) -> tuple[str, ...]:
        """What could be loaded."""
        if not self.directory.is_dir():
            return ()
        return tuple(sorted(path.name for path in self.directory.iterdir() if self._is_inside(path)))

    def path_of(self, name: str) -> Path:
        check_name(name, "lora_path")
        path = self.directory / name
        if not self._is_inside(path):
            raise UnknownAdapter(f"there is no adapter {name!r} in the directory of adapters", "lora_path")
        return path.resolve()

    def _is_inside(self, path: Path) -> bool:
        """Whether it is there, and a link does not lead out."""
        return NAME.fullmatch(path.name) is not None and path.exists() and path.resolve().parent == self.directory
