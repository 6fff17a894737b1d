"""The process in which chat templates are rendered: reads requests, writes answers, and can be ended at any moment.

Run by `loaders.chat_template` as a file of its own: it imports nothing of the project, so it starts in a tenth of a
second. A message is four bytes of length and as many of JSON. The first one is the templates and the limits, and has
no answer; each further one names a template and its variables. An answer is {"text": ...} or {"refused": a sentence}.
"""

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refused(TemplateError):
    """The template itself says no, or its text is too long."""


class GenerationTag(Extension):
    """{% generation %} marks what training counts; for rendering it is nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> Environment:
    """What transformers gives a chat template, no more and no less."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes characters for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    raise Refused(str(message))


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class Renderer:
    """Templates by name, each compiled when it is first asked for."""

    def __init__(self, sources: Mapping[str, str], cpu_seconds: float) -> None:
        self.sources = sources
        self.cpu_seconds = cpu_seconds
        self._environment = environment()
        self._templates: dict[str, Template] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, str]:
        try:
            with self._timer():
                return {"text": self._render(request["template"], request["variables"], request["max_characters"])}
        except Refused as refused:
            return {"refused": str(refused)}
        except MemoryError:
            return {"refused": "it wants too much memory"}
        except RecursionError:
            return {"refused": "it nests too deeply"}
        except Exception as trouble:  # somebody else's program may fail in any way that Python knows
            return {"refused": f"{type(trouble).__name__}: {trouble}"[:500]}

    def _render(self, name: str, variables: Mapping[str, Any], room: int) -> str:
        if name not in self._templates:
            self._templates[name] = self._environment.from_string(self.sources[name])
        pieces: list[str] = []
        for piece in self._templates[name].generate(**variables):
            room -= len(piece)
            if room < 0:
                raise Refused("its text is too long")
            pieces.append(piece)
        return "".join(pieces)

    @contextlib.contextmanager
    def _timer(self) -> Iterator[None]:
        """SIGPROF ends this process when it comes; nothing that a template does can be in its way."""
        signal.setitimer(signal.ITIMER_PROF, self.cpu_seconds)
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)  # where there was an error, the next rendering sets it anew


def take() -> Any:
    """The next message; none means that the other side is gone."""
    length = int.from_bytes(sys.stdin.buffer.read(4), "little")
    return json.loads(sys.stdin.buffer.read(length)) if length else sys.exit()


def give(answer: Mapping[str, str]) -> None:
    content = json.dumps(answer).encode()
    sys.stdout.buffer.write(len(content).to_bytes(4, "little") + content)
    sys.stdout.buffer.flush()


def main() -> None:
    for end in (signal.SIGINT, signal.SIGTERM):  # these are for the other side, which then closes the pipe
        signal.signal(end, signal.SIG_IGN)
    settings = take()
    with contextlib.suppress(ValueError, OSError):  # macOS sets no such limit
        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_bytes"], settings["memory_bytes"]))
    renderer = Renderer(settings["sources"], settings["cpu_seconds"])
    while True:
        give(renderer.answer(take()))


if __name__ == "__main__":
    main()
