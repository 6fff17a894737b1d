"""NAME=PATH, as adapters are given on a command line."""

from engine.refusal import BadRequest


def name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise BadRequest(f"an adapter is given as NAME=PATH; got {text!r}", "adapter")
    return name, path
