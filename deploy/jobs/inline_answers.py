"""InlineAnswers: an Engine on one thread of this process. No Ray, and nothing that survives it."""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from actors.asking import ask_of, request_of
from deploy.jobs.answers import whole
from deploy.jobs.asked import Words
from engine.adapter import Adapter
from engine.completion import Completion, Transcript
from engine.engine import Engine
from engine.event import AdapterWanted, ChoiceEnded, PromptScored, Started, TokenEvent
from engine.refusal import Refusal
from engine.request import Request
from loaders.tokenizer import Tokenizer

MakeEngine = Callable[[], tuple[Engine, Mapping[str, Adapter]]]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One question, and whoever waits for its answer."""

    transcript: Transcript
    answer: asyncio.Future[Completion]


@dataclass(frozen=True, slots=True)
class Refused:
    """What the engine would not take."""

    request_id: str
    refusal: Refusal


Told = Started | PromptScored | TokenEvent | ChoiceEnded | Refused


class InlineAnswers:
    """Used on one event loop. MLX binds an engine to a thread, so it is made and driven on one of its own."""

    def __init__(self, make: MakeEngine, tokenizer: Tokenizer) -> None:
        self._thread = ThreadPoolExecutor(1, "engine")
        self._engine, self._adapters = self._thread.submit(make).result()
        self._thread.submit(self._attach, self._adapters).result()
        self._tokenizer = tokenizer
        self._new: list[Request] = []
        self._gone: list[str] = []
        self._waiting: dict[str, Waiting] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def answer(self, words: Words) -> Completion:
        engine = self._engine
        ask, most = ask_of(uuid.uuid4().hex, words), engine.options.max_sequences
        request = request_of(ask, self._tokenizer, engine.capacity, most, tuple(self._adapters))
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = Waiting(Transcript(request, self._tokenizer.vocabulary), answer)
        self._new.append(request)
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step())
            self._stepping.add_done_callback(self._stopped)
        try:
            return whole(await answer)
        finally:
            if self._waiting.pop(request.id, None) is not None:
                self._gone.append(request.id)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def _step(self) -> None:
        loop = asyncio.get_running_loop()
        while self._new or self._waiting:
            new, gone, self._new, self._gone = self._new, self._gone, [], []
            for event in await loop.run_in_executor(self._thread, self._drive, new, gone):
                self._take(event)
            await asyncio.sleep(0)  # whoever has an answer asks the next question

    def _stopped(self, stepping: asyncio.Task[None]) -> None:
        """An engine that died takes along who waits for it."""
        if not stepping.cancelled() and stepping.exception() is not None:
            for waiting in self._waiting.values():
                if not waiting.answer.done():
                    waiting.answer.set_exception(stepping.exception() or AssertionError())

    def _take(self, told: Told) -> None:
        waiting = self._waiting.get(told.request_id)
        if waiting is None or waiting.answer.done():  # withdrawn, and whoever asked has not come round to saying so
            return
        if isinstance(told, Refused):
            waiting.answer.set_exception(told.refusal)
        else:
            waiting.transcript.add(told)
            if not waiting.transcript.is_finished:
                return
            waiting.answer.set_result(waiting.transcript.completion())
        del self._waiting[told.request_id]

    # On the engine's thread

    def _drive(self, new: Iterable[Request], gone: Iterable[str]) -> list[Told]:
        refused = [told for request in new if (told := self._add(request)) is not None]
        for request_id in gone:  # also one that was asked and withdrawn in the same turn
            self._engine.abort(request_id)
        events = self._engine.step() if self._engine.has_work else []
        self._attach({event.name: self._adapters[event.name] for event in events if isinstance(event, AdapterWanted)})
        return [*refused, *(event for event in events if not isinstance(event, AdapterWanted))]

    def _add(self, request: Request) -> Refused | None:
        try:
            self._engine.add(request)
        except Refusal as refusal:
            return Refused(request.id, refusal)
        return None

    def _attach(self, adapters: Mapping[str, Adapter]) -> None:
        for name, adapter in adapters.items():
            self._engine.attach(name, adapter)
