"""Generation: a model, a tokenizer and adapters, in this process and this thread. No Ray, no queue of strangers.

The short form of everything: load, load, load, run. Prompts given together share one batch.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, overload
from uuid import uuid4

from engine.adapter import Adapter
from engine.completion import Completion, Piece, Transcript
from engine.engine import Engine
from engine.event import AdapterWanted
from engine.kernels.choose import choose
from engine.options import EngineOptions
from engine.refusal import BadRequest, PromptTooLong
from engine.request import Request
from engine.weights import Model
from engine.words import sampling_of
from loaders.prompt import Prompt, is_many, prompt_tokens
from loaders.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 256


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
        self.model = model
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.vocabulary
        kernels = choose(model.config, model.weights, options.block_size, expand=options.expand)
        self.engine = Engine(model, kernels, options, self.vocabulary)
        self._adapters = dict(adapters or {})
        self._mail: dict[str, deque[Any]] = {}  # by request, where its events are waited for
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

    def stream(self, prompt: Prompt, **words: Any) -> Iterator[Piece]:
        """The pieces of a prompt's completion, as they are made."""
        transcripts = self._transcripts([prompt], words)
        return (piece for _, piece in self._serve(transcripts))

    def stream_many(self, prompts: Sequence[Prompt], **words: Any) -> Iterator[tuple[int, Piece]]:
        """The pieces of several prompts' completions, each with the number of its prompt."""
        transcripts = self._transcripts(list(prompts), words)
        numbers = {request_id: number for number, request_id in enumerate(transcripts)}
        return ((numbers[request_id], piece) for request_id, piece in self._serve(transcripts))

    def prompt_tokens(self, prompt: Prompt, *, system: str | None = None, raw: bool = False) -> tuple[int, ...]:
        """What the model reads of a prompt."""
        return prompt_tokens(self.tokenizer, prompt, system=system, raw=raw)

    def _transcripts(self, prompt: Any, words: Mapping[str, Any]) -> dict[str, Transcript]:
        prompts = list(prompt) if is_many(prompt) else [prompt]
        adapters = words.get("adapter")
        if not isinstance(adapters, list | tuple):
            adapters = [adapters] * len(prompts)
        if len(adapters) != len(prompts):
            raise BadRequest(f"{len(prompts)} prompts came with {len(adapters)} adapters", "adapter")
        requests = [self._request(one, adapter, words) for one, adapter in zip(prompts, adapters, strict=True)]
        return {request.id: Transcript(request, self.vocabulary) for request in requests}

    def _request(self, prompt: Prompt, adapter: str | None, words: Mapping[str, Any]) -> Request:
        sampling_words = {word: value for word, value in words.items() if word not in ("adapter", "system", "raw")}
        tokens = self.prompt_tokens(prompt, system=words.get("system"), raw=bool(words.get("raw", False)))
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
            for request_id in transcripts:
                self.engine.abort(request_id)
                self._mail.pop(request_id, None)
