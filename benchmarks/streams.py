"""Streams of every kind, kept open by many readers, each compared with what an engine answers that nobody disturbs."""

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.client import Client
from actors.model_choice import ModelChoice, function_at
from actors.refusals import Overloaded
from engine.completion import Completion, Piece, Transcript
from engine.engine import Engine
from engine.options import EngineOptions
from engine.request import Request
from engine.sequence import seed_of
from engine.vocabulary import Vocabulary
from tests.serving import mixed_requests, tiny_choice, words_of

ADAPTERS = (("red", "1"), ("blue", "2"))  # made up, by their seeds


@dataclass(frozen=True, slots=True)
class Said:
    """What one choice came to."""

    tokens: tuple[int, ...]
    text: str
    reason: str | None


Answer = tuple[Said, ...]


def choice_of(model: str, directory: Path) -> ModelChoice:
    """ "tiny", made on the spot, or a model by its name; with two adapters either way."""
    if model == "tiny":
        return tiny_choice(directory)
    return ModelChoice(model, EngineOptions(cache_bytes=256 << 20), ADAPTERS, read_adapter="tests.serving:read_adapter")


def requests_of_every_kind(count: int, max_tokens: int) -> list[Request]:
    """Each with the seed that its id would give it, so that it may be asked under any id."""
    requests = mixed_requests(count, max_tokens)
    return [replace(each, sampling=replace(each.sampling, seed=seed_of(each))) for each in requests]


def undisturbed(choice: ModelChoice, requests: list[Request], at_once: int = 32) -> dict[str, Answer]:
    """What a bare engine in this process answers."""
    engine: Engine = function_at(choice.make_engine)(choice)
    for name, path in choice.adapters:
        engine.attach(name, function_at(choice.read_adapter)(path, engine.model))
    vocabulary: Vocabulary = function_at(choice.make_tokenizer)(choice).vocabulary
    transcripts = {request.id: Transcript(request, vocabulary) for request in requests}
    for start in range(0, len(requests), at_once):
        for request in requests[start : start + at_once]:
            engine.add(request)
        while engine.has_work:
            for event in engine.step():
                transcripts[event.request_id].add(event)  # type: ignore[union-attr]
    return {name: answer_of(transcript.completion()) for name, transcript in transcripts.items()}


def answer_of(completion: Completion) -> Answer:
    return tuple(Said(choice.tokens, choice.text, choice.finish_reason) for choice in completion.choices)


@dataclass
class Findings:
    """What the readers saw. Guarded by its lock."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set)  # requests under way
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))  # of tokens
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, piece: Piece) -> None:
        with self.lock:
            self.counts["tokens"] += len(piece.tokens)
            self.arrivals.append(time.monotonic())

    def judge(self, name: str, answer: Answer, expected: Answer) -> None:
        with self.lock:
            self.counts["requests"] += 1
            if answer != expected:
                self.counts["different"] += 1
                self.wrong.append(f"{name}: {answer} where {expected} was expected")

    def failed(self, name: str, failure: Exception) -> None:
        with self.lock:
            self.counts["requests"] += 1
            self.counts["lost"] += 1
            self.wrong.append(f"{name}: {failure!r}")

    def silence_after(self, moment: float) -> tuple[float, float] | None:
        """The longest time without a token since then: its beginning and its end. None if nothing has come yet."""
        with self.lock:
            times = [moment, *(arrival for arrival in self.arrivals if arrival > moment)]
        pairs = list(zip(times, times[1:], strict=False))
        return max(pairs, key=lambda pair: pair[1] - pair[0], default=None)


class Load:
    """So many streams, always open, until it is told to finish."""

    def __init__(self, client: Client, expected: dict[str, Answer], requests: list[Request], streams: int) -> None:
        self.client = client
        self.expected = expected
        self.requests = requests
        self.findings = Findings()
        self.is_over = threading.Event()
        self._numbers = iter(range(10**9))
        self._threads = [threading.Thread(target=self._read, daemon=True) for _ in range(streams)]
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> None:
        """Open nothing new, and wait. A stream that has not ended by then is lost."""
        self.is_over.set()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for thread in self._threads:
            if thread.is_alive():
                self.findings.failed(thread.name, TimeoutError("it never ended"))

    def _read(self) -> None:
        while not self.is_over.is_set():
            with self.findings.lock:
                number = next(self._numbers)
            request = self.requests[number % len(self.requests)]
            name = f"{request.id}/{number}"
            try:
                self.findings.judge(name, read(self.client, name, request, self.findings), self.expected[request.id])
            except Overloaded as refusal:
                time.sleep(refusal.retry_after_seconds)
            except Exception as failure:
                self.findings.failed(name, failure)


def read(client: Client, name: str, request: Request, findings: Findings) -> Answer:
    """One stream from beginning to end, every position of it checked."""
    said: list[dict[str, Any]] = [{"tokens": [], "text": "", "reason": None} for _ in range(request.sampling.n)]
    stream = client.stream(id=name, **words_of(request))
    findings.open.add(name)
    for piece in stream:
        choice = said[piece.choice]
        if piece.position != len(choice["tokens"]):
            raise AssertionError(f"position {piece.position} where {len(choice['tokens'])} was next")
        choice["tokens"] += piece.tokens
        choice["text"] += piece.text
        choice["reason"] = piece.finish_reason
        findings.saw(piece)
    findings.open.discard(name)
    return tuple(Said(tuple(choice["tokens"]), choice["text"], choice["reason"]) for choice in said)


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def spread(seconds: list[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "worst": 1.0}
    return {name: round(quantile(seconds, share), 3) for name, share in shares.items()}


def bound(found: int, sample: int) -> str:
    """A zero says little by itself: with it stands the largest rate that it leaves possible at 95 %, three a sample."""
    return f"{found} of {sample:,}" + (f" (95 %: below {3 / sample:.1e})" if not found and sample else "")
