"""OnBoard: the requests that a model server has, in its engine or set aside. Sends nothing.

A request that is to run alone sets the others aside: they leave the engine with the tokens they have, and come back
once it has got further. Its name stands in the progress file, so if the process dies it is known whose step that was.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from actors.adapter_rack import AdapterRack
from actors.pid import Pid
from actors.progress import Progress
from engine.engine import Engine
from engine.event import AdapterWanted, ChoiceEnded, Event, TokenEvent
from engine.refusal import Refusal
from engine.request import Request

Tokens = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Given:
    """A request: as it came, for whom, and what it has by now."""

    request: Request
    consumer: Pid
    tokens: list[list[int]]
    is_aside: bool = False

    def resumed(self) -> Request:
        tokens: Tokens = tuple(map(tuple, self.tokens))
        return replace(self.request, resumed=tokens) if any(tokens) else self.request


class OnBoard:
    """Owned by one model server. `turned_away` is told of who was not taken, or not any longer."""

    def __init__(
        self,
        engine: Engine,
        rack: AdapterRack,
        progress: Progress,
        read_vocabulary: Callable[[], None],
        turned_away: Callable[[Given, Refusal], None],
    ) -> None:
        self.engine = engine
        self.rack = rack
        self.progress = progress
        self.given: dict[str, Given] = {}
        self.alone: str | None = None
        self._lonely: deque[str] = deque()  # to be run alone, one after the other
        self._read_vocabulary = read_vocabulary
        self._turned_away = turned_away

    def __len__(self) -> int:
        return len(self.given)

    def take(self, request: Request, consumer: Pid, *, is_alone: bool) -> None:
        self.drop(request.id)
        tokens = [list(had) for had in request.resumed] or [[] for _ in range(request.sampling.n)]
        given = self.given[request.id] = Given(request, consumer, tokens)
        if is_alone:
            self._lonely.append(request.id)
            given.is_aside = True
        elif self.alone is not None or self._lonely:
            given.is_aside = True
        else:
            self._enter(given)

    def drop(self, request_id: str) -> None:
        given = self.given.get(request_id)
        if given is None:
            return
        if not given.is_aside:
            self.engine.abort(request_id)
        self._forget(request_id)

    def drop_all_of(self, consumer: Pid) -> None:
        for request_id in [name for name, given in self.given.items() if given.consumer == consumer]:
            self.drop(request_id)

    def turn_away_all_with(self, adapter: str, refusal: Refusal) -> None:
        for given in [given for given in self.given.values() if given.request.adapter == adapter]:
            self.engine.abort(given.request.id)
            self._turn_away(given, refusal)

    # Running alone

    def next_solo(self) -> None:
        """If somebody is to run alone and nobody does, set all others aside and begin."""
        if self.alone is not None or not self._lonely:
            return
        for given in self.given.values():
            if not given.is_aside:
                self.engine.abort(given.request.id)
                given.is_aside = True
        self.alone = self._lonely.popleft()
        self.progress.run_alone(self.alone)
        self._enter(self.given[self.alone])

    def _end_solo(self) -> None:
        """It got further, or ended: the next one's turn, or everybody's."""
        self.alone = None
        self.progress.run_alone(None)
        self.next_solo()
        if self.alone is None:
            for given in list(self.given.values()):
                if given.is_aside:
                    self._enter(given)

    # What a step brought

    def sort(self, events: Iterable[Event]) -> dict[Pid, list[Event]]:
        """For whom they are. What belongs to nobody, or to who was set aside, is not told.

        Nor is an abort: who left the engine by our own wish may have come back into it before it says so.
        """
        parts: dict[Pid, list[Event]] = {}
        for event in events:
            if isinstance(event, AdapterWanted) or (isinstance(event, ChoiceEnded) and event.finish_reason == "abort"):
                continue
            given = self.given.get(event.request_id)
            if given is None or given.is_aside:
                continue
            parts.setdefault(given.consumer, []).append(event)
            if isinstance(event, TokenEvent):
                given.tokens[event.choice].append(event.token)
        return parts

    def let_go(self, told: Iterable[Event]) -> None:
        """Those that have ended go, and the others come in again when one that ran alone got further."""
        heard: dict[str, bool] = {}
        for event in told:
            assert not isinstance(event, AdapterWanted)
            heard[event.request_id] = heard.get(event.request_id, False) or isinstance(event, TokenEvent)
        for request_id, has_progressed in heard.items():
            if request_id not in self.engine.roster:
                self._forget(request_id)
            elif request_id == self.alone and has_progressed:
                self._end_solo()

    # The pieces of it

    def _enter(self, given: Given) -> None:
        """Into the engine, with what it has."""
        given.is_aside = False
        try:
            if given.request.sampling.stop:
                self._read_vocabulary()
            if given.request.adapter in self.rack.broken:
                raise self.rack.broken[given.request.adapter]
            self.engine.add(given.resumed())
        except Refusal as refusal:
            self._turn_away(given, refusal)

    def _turn_away(self, given: Given, refusal: Refusal) -> None:
        self._forget(given.request.id)
        self._turned_away(given, refusal)

    def _forget(self, request_id: str) -> None:
        self.given.pop(request_id, None)
        if request_id in self._lonely:
            self._lonely.remove(request_id)
        if request_id == self.alone:
            self._end_solo()
