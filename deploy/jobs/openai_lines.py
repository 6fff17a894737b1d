"""OpenAI's lines: from a body to our words and back to OpenAI's shapes, by the same fields as the HTTP door."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

from deploy.http.backend import NO_TERMS
from deploy.http.chat_fields import ChatFields
from deploy.http.chat_shapes import ChatShapes
from deploy.http.completion_fields import CompletionFields
from deploy.http.completion_shapes import CompletionShapes
from deploy.http.errors import ModelNotFound
from deploy.http.job import Job, job_id
from deploy.http.logprobs import TokenTexts
from deploy.http.payload import fields_of
from deploy.http.sampling_fields import SAME_WORDS, SamplingFields
from deploy.jobs.asked import Asked, Words, completed
from deploy.jobs.lines import Line
from engine.completion import Completion
from engine.refusal import BadRequest, shown
from engine.request import Request
from engine.words import sampling_of
from loaders.tokenizer import Tokenizer


class OpenAILines:
    """Reads bodies for one model and its adapters. `now` gives the seconds since 1970 that OpenAI's answers carry."""

    def __init__(
        self,
        load_tokenizer: Callable[[], Tokenizer],
        model_names: Sequence[str],
        adapters: Collection[str],
        now: Callable[[], float],
    ) -> None:
        self._load_tokenizer = load_tokenizer
        self._model_names = model_names  # the first is the one that answers carry
        self._adapters = adapters
        self._now = now
        self._fingerprint = "fp_" + blake2b(model_names[0].encode(), digest_size=8).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._load_tokenizer()

    @cached_property
    def texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer)

    def asked(self, line: Line, defaults: Words) -> Asked:
        if line.url == "/v1/chat/completions":
            return self._chat(line, fields_of(ChatFields, dict(line.body)), defaults)
        return self._completion(line, fields_of(CompletionFields, dict(line.body)), defaults)

    def _chat(self, line: Line, fields: ChatFields, defaults: Words) -> Asked:
        ids = self.tokenizer.encode_chat(fields.plain_messages(), thinking=bool(fields.is_thinking))
        num_top = (fields.top_logprobs or 0) if fields.logprobs else None
        max_tokens = fields.max_completion_tokens or fields.max_tokens
        words = self._words(fields) | {"max_tokens": max_tokens, "logprobs": num_top, "prompt": tuple(ids)}
        questions = (completed(words, defaults, line.seed),)
        job = self._job("chatcmpl-", line, fields, questions)

        def tell(completions: Sequence[Completion]) -> dict[str, Any]:
            (completion,) = completions
            return self._shapes(job, num_top).completion(completion)

        return Asked(questions, tell)

    def _shapes(self, job: Job, num_top: int | None) -> ChatShapes:
        texts: Any = None if num_top is None else self.texts  # read where there are logprobs, and nowhere else
        return ChatShapes(job, self._fingerprint, texts, num_top, wants_usage=False)

    def _completion(self, line: Line, fields: CompletionFields, defaults: Words) -> Asked:
        wants_scores = fields.echo and (fields.logprobs is not None or fields.max_tokens == 0)
        words = self._words(fields) | {
            "max_tokens": fields.max_tokens,
            "logprobs": fields.logprobs,
            "prompt_logprobs": (fields.logprobs or 0) if wants_scores else None,
        }
        questions = tuple(
            completed(words | {"prompt": self._ids(prompt)}, defaults, line.seed) for prompt in fields.prompts
        )
        job = self._job("cmpl-", line, fields, questions)
        echoes = tuple(map(self._text, fields.prompts)) if fields.echo else None

        def tell(completions: Sequence[Completion]) -> dict[str, Any]:
            texts: Any = None if fields.logprobs is None else self.texts
            shapes = CompletionShapes(job, self._fingerprint, texts, fields.logprobs, False, echoes)
            return shapes.completion(completions)

        return Asked(questions, tell)

    def _words(self, fields: SamplingFields) -> dict[str, Any]:
        if fields.stream:
            raise BadRequest("a line of a batch is answered as a whole; stream must not be set", "stream")
        words = {name: getattr(fields, name) for name in SAME_WORDS}
        words |= {"adapter": self._adapter(fields), "priority": fields.priority}
        words["seed"] = None if fields.seed is None else fields.seed % 2**64
        words["deadline_seconds"] = None if fields.deadline_ms is None else fields.deadline_ms / 1000
        return words

    def _adapter(self, fields: SamplingFields) -> str | None:
        """The adapter that `model` and `adapter` name together."""
        named = None if fields.model in (None, *self._model_names) else fields.model
        if named is not None and fields.adapter not in (None, named):
            raise BadRequest("model and adapter name two different adapters", "adapter")
        adapter = fields.adapter if named is None else named
        if adapter is not None and adapter not in self._adapters:
            known = ", ".join((self._model_names[0], *self._adapters))
            param = "model" if named is not None else "adapter"
            raise ModelNotFound(f"the model {shown(adapter)} does not exist; known are {known}", param)
        return adapter

    def _job(self, prefix: str, line: Line, fields: SamplingFields, questions: Sequence[Words]) -> Job:
        stem = f"{line.seed:032x}"
        names = {"prompt", "adapter", "priority", "deadline_seconds"}
        requests = tuple(
            Request(
                f"{stem}.{number}",
                words["prompt"],
                sampling_of({name: value for name, value in words.items() if name not in names}),
                words.get("adapter"),
            )
            for number, words in enumerate(questions)
        )
        model = requests[0].adapter or self._model_names[0]
        return Job(job_id(prefix, stem, len(requests)), model, int(self._now()), requests, NO_TERMS)

    def _ids(self, prompt: str | list[int]) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else prompt)

    def _text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
