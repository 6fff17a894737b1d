"""NAME=PATH, as adapters are given on a command line."""

from collections.abc import Iterable

from engine.refusal import BadRequest, shown
from loaders.sources import absolute


def named_places(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Names, no two alike, with paths that mean the same in every process."""
    places: dict[str, str] = {}
    for name, path in map(name_and_path, texts):
        if name in places:
            raise BadRequest(f"two adapters are named {shown(name)}: each needs a name of its own", "adapter")
        places[name] = str(absolute(path))
    return tuple(places.items())


def name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise BadRequest(f"an adapter is given as NAME=PATH; got {text!r}", "adapter")
    return name, path


def check_not_the_models(names: Iterable[str], adapters: Iterable[tuple[str, str]]) -> None:
    """Who asks for a model by one of its names would never be answered by an adapter of that name."""
    taken = set(names)
    for name, _ in adapters:
        if name in taken:
            raise BadRequest(f"{shown(name)} is the model's name: the adapter needs one of its own", "adapter")
