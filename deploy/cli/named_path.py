"""NAME=PATH, as adapters are given on a command line."""

from pathlib import Path

from engine.refusal import BadRequest


def name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise BadRequest(f"an adapter is given as NAME=PATH; got {text!r}", "adapter")
    return name, path


def named_place(text: str) -> tuple[str, str]:
    """The same, with a path that means the same in every process."""
    name, path = name_and_path(text)
    return name, str(Path(path).expanduser().absolute())
