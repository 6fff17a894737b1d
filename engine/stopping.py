"""StopState: text in, text out, until one of the stop strings is complete. Knows nothing of tokens or bytes.

Text that could be the beginning of a stop string is held back, and released as soon as it cannot be one. The stop
strings are one Aho-Corasick automaton: its state is the longest end of the text so far that begins a stop string,
which is exactly what must be held back. So the state of a stream is one number, a character costs one lookup (on
average) for all strings together, and where the text was cut into pieces makes no difference.

The stop string that is complete first wins, and of two that end at the same character the longer one.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ROOT = 0


@dataclass(frozen=True, slots=True)
class StopStrings:
    """The automaton; one record a node, by number, each a beginning of some stop string."""

    strings: tuple[str, ...]
    beginning: tuple[str, ...] = field(compare=False, repr=False)  # the text that leads to the node
    children: tuple[Mapping[str, int], ...] = field(compare=False, repr=False)
    shorter: tuple[int, ...] = field(compare=False, repr=False)  # the longest proper end of it that is a node as well
    complete: tuple[str | None, ...] = field(compare=False, repr=False)  # the longest stop string it ends with

    def advance(self, node: int, character: str) -> int:
        while character not in self.children[node]:
            if node == ROOT:
                return ROOT
            node = self.shorter[node]
        return self.children[node][character]


def compile_stops(strings: Iterable[str]) -> StopStrings:
    """Build the automaton, nodes in order of their beginnings' lengths."""
    strings = tuple(strings)
    beginning = [""]
    children: list[dict[str, int]] = [{}]
    for string in strings:
        node = ROOT
        for end, character in enumerate(string, start=1):
            if character not in children[node]:
                children[node][character] = len(children)
                children.append({})
                beginning.append(string[:end])
            node = children[node][character]

    shorter = [ROOT] * len(children)
    complete = [text if text and text in strings else None for text in beginning]
    waiting = deque(children[ROOT].values())
    while waiting:  # breadth first: a node's shorter one is finished before it
        node = waiting.popleft()
        complete[node] = complete[node] or complete[shorter[node]]
        for character, child in children[node].items():
            other = shorter[node]
            while character not in children[other] and other != ROOT:
                other = shorter[other]
            shorter[child] = children[other].get(character, ROOT)
            waiting.append(child)
    return StopStrings(strings, tuple(beginning), tuple(children), tuple(shorter), tuple(complete))


NO_STOPS = compile_stops(())


@dataclass(frozen=True, slots=True)
class StopState:
    """A text that ends where a stop string begins.

    state, text = StopState(compile_stops(["\\nUser:"])).step("Hello\\nUs")   # "Hello"
    state, text = state.step("er: hi")                                       # "", and state.matched == "\\nUser:"
    """

    stops: StopStrings = NO_STOPS
    node: int = ROOT
    matched: str | None = None  # the stop string that ended the text

    @property
    def held(self) -> str:
        """Text that came and was not given on yet."""
        return "" if self.matched is not None else self.stops.beginning[self.node]

    def step(self, text: str, *, ends: bool = True) -> tuple["StopState", str]:
        """Take text, and give what is certain to stand before any stop string. One is passed over unless it `ends`."""
        if self.matched is not None or not self.stops.strings:
            return self, "" if self.matched is not None else text
        stops, node = self.stops, self.node
        for end, character in enumerate(text, start=1):
            node = stops.advance(node, character)
            matched = stops.complete[node]
            if matched is not None and ends:
                whole = self.held + text[:end]
                return StopState(stops, ROOT, matched), whole[: -len(matched)]
        whole = self.held + text
        state = self if node == self.node else StopState(stops, node)
        return state, whole[: len(whole) - len(stops.beginning[node])]

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        return self.held
