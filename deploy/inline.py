"""Generation: a model, a tokenizer and adapters, in this process and this thread. No Ray, no queue of strangers.

The short form of everything: load, load, load, run. Prompts given together share one batch.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, overload
from uuid import uuid4

from deploy.own_thread import OwnThread
from engine.adapter import Adapter
from engine.completion import Completion, Piece, Transcript
from engine.engine import Engine
from engine.event import AdapterWanted
from engine.kernels.choose import choose
from engine.limits import check_name
from engine.options import EngineOptions
from engine.refusal import BadRequest, PromptTooLong
from engine.request import Request
from engine.weights import Model
from engine.words import sampling_of
from loaders.prompt import Prompt, is_many, listed, prompt_tokens
from loaders.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 256
Told = TypeVar("Told", covariant=True)


class Pieces(Generic[Told]):
    """What is told of a stream, one by one. Only the generation's thread gets the next; anybody may let go of it."""

    def __init__(self, own: OwnThread, told: Generator[Told, None, None]) -> None:
        self._own = own
        self._told = told

    def __iter__(self) -> Iterator[Told]:
        return self

    def __next__(self) -> Told:
        self._own.check()
        return next(self._told)

    def close(self) -> None:
        """Hear no more of it; it is cancelled."""
        self._told.close()


class Generation:
    """Runs prompts on an engine of its own.

    serving = generation(load_model("smollm2"), load_tokenizer("smollm2"))
    serving.run("Why is the sky blue?", max_tokens=60).text
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        adapters: Mapping[str, Adapter] | None = None,
        options: EngineOptions = EngineOptions(),
    ) -> None:
        for name in adapters or {}:
            check_name("adapter", name, 1)
        self.model = model
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.vocabulary
        kernels = choose(model.config, model.weights, options.block_size, expand=options.expand)
        self.engine = Engine(model, kernels, options, self.vocabulary)
        self._adapters = dict(adapters or {})
        self._own = OwnThread("a generation")
        self._mail: dict[str, deque[Any]] = {}  # by request, where its events are waited for
        self._left = deque[str]()  # requests that nobody waits for any more
        for name, adapter in self._adapters.items():
            self.engine.attach(name, adapter)

    @overload
    def run(self, prompt: str, **words: Any) -> Completion: ...
    @overload
    def run(self, prompt: Sequence[Any], **words: Any) -> Any: ...

    def run(self, prompt: Any, **words: Any) -> Any:
        """The completion of a prompt, or a list of completions for a list of prompts.

        Words are `adapter`, `system`, `raw`, and those of sampling: `max_tokens`, `temperature`, `seed`, ...
        """
        transcripts = self._transcripts(prompt, words)
        for _ in self._serve(transcripts):
            pass
        completions = [transcript.completion() for transcript in transcripts.values()]
        return completions if is_many(prompt) else completions[0]

    def stream(self, prompt: Prompt, **words: Any) -> Pieces[Piece]:
        """The pieces of a prompt's completion, as they are made."""
        transcripts = self._transcripts([prompt], words)
        return Pieces(self._own, (piece for _, piece in self._serve(transcripts)))

    def stream_many(self, prompts: Sequence[Prompt], **words: Any) -> Pieces[tuple[int, Piece]]:
        """The pieces of several prompts' completions, each with the number of its prompt."""
        transcripts = self._transcripts(listed(prompts), words)
        numbers = {request_id: number for number, request_id in enumerate(transcripts)}
        return Pieces(self._own, ((numbers[request_id], piece) for request_id, piece in self._serve(transcripts)))

    def prompt_tokens(self, prompt: Prompt, *, system: str | None = None, raw: bool = False) -> tuple[int, ...]:
        """What the model reads of a prompt."""
        return prompt_tokens(self.tokenizer, prompt, system=system, raw=raw)

    def _transcripts(self, prompt: Any, words: Mapping[str, Any]) -> dict[str, Transcript]:
        """A place for each answer; what cannot be answered is refused now, also where the answer is read later."""
        self._own.check()
        prompts = list(prompt) if is_many(prompt) else [prompt]
        adapters = words.get("adapter")
        if not isinstance(adapters, list | tuple):
            adapters = [adapters] * len(prompts)
        if len(adapters) != len(prompts):
            raise BadRequest(f"{len(prompts)} prompts came with {len(adapters)} adapters", "adapter")
        requests = [self._request(one, adapter, words) for one, adapter in zip(prompts, adapters, strict=True)]
        for request in requests:
            self.engine.check_request(request)
        return {request.id: Transcript(request, self.vocabulary) for request in requests}

    def _request(self, prompt: Prompt, adapter: str | None, words: Mapping[str, Any]) -> Request:
        sampling_words = {word: value for word, value in words.items() if word not in ("adapter", "system", "raw")}
        own_words = {word: words[word] for word in ("system", "raw") if words.get(word) is not None}
        tokens = self.prompt_tokens(prompt, **own_words)
        room = self.engine.capacity.max_context - len(tokens)
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {len(tokens)} tokens; this model takes {self.engine.capacity.max_context}, "
                "the answer included",
                "prompt",
            )
        sampling = sampling_of(sampling_words, max_tokens=min(DEFAULT_MAX_TOKENS, room))
        return Request(uuid4().hex, tokens, sampling, adapter=adapter)

    def _serve(self, transcripts: Mapping[str, Transcript]) -> Iterator[tuple[str, Piece]]:
        """Steps until all have ended; whatever happens, none of them stays in the engine."""
        mail = deque[Any]()
        with self._added(transcripts, mail):
            while not all(transcript.is_finished for transcript in transcripts.values()):
                while not mail:
                    self._step()
                event = mail.popleft()
                piece = transcripts[event.request_id].add(event)
                if piece is not None:
                    yield event.request_id, piece

    def _step(self) -> None:
        """A step serves everybody, also a stream that is in the middle of its text while somebody else asks."""
        self._let_go()
        for event in self.engine.step():
            if isinstance(event, AdapterWanted):
                self.engine.attach(event.name, self._adapters[event.name])
            elif event.request_id in self._mail:
                self._mail[event.request_id].append(event)

    @contextmanager
    def _added(self, transcripts: Mapping[str, Transcript], mail: deque[Any]) -> Iterator[None]:
        try:
            for transcript in transcripts.values():
                self.engine.add(transcript.request)
                self._mail[transcript.request.id] = mail
            yield
        finally:
            self._left.extend(transcripts)
            if self._own.is_here:  # another thread's may be in the middle of a step
                self._let_go()

    def _let_go(self) -> None:
        while self._left:
            request_id = self._left.popleft()
            self.engine.abort(request_id)
            self._mail.pop(request_id, None)
