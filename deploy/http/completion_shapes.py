"""Plain completions as OpenAI shapes them, whole and in chunks, with the prompt in front where it is wanted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.http.chat_shapes import usage_of
from deploy.http.job import Job
from deploy.http.logprobs import Columns, TokenTexts, joined
from engine.completion import Choice, Completion, Piece, Usage
from engine.event import PromptScored


@dataclass(slots=True)
class CompletionShapes:
    """One job's answers. `num_top` is None where no logprobs are wanted, `echoes` where no prompt is."""

    job: Job
    fingerprint: str
    texts: TokenTexts
    num_top: int | None
    wants_usage: bool
    echoes: tuple[str, ...] | None  # the prompts' texts
    had: Sequence[int] = ()  # pieces of each answer that the reader of a resumed stream has
    columns: list[Columns] = field(init=False)
    scores: dict[int, PromptScored] = field(init=False, default_factory=dict)  # by prompt; told with an answer's first
    untold: set[int] = field(init=False, default_factory=set)  # answers that have no piece yet, and wait for these

    def __post_init__(self) -> None:
        self.columns = [Columns(self.texts, self.num_top or 0) for _ in range(self.job.num_answers)]
        if self.echoes is None:
            return
        for answer, columns in enumerate(self.columns):
            if self.had and self.had[answer]:
                columns.skip(self.job.requests[answer // self.job.num_choices].prompt)
            elif self.num_top is not None:
                self.untold.add(answer)

    def completion(self, completions: Sequence[Completion]) -> dict[str, Any]:
        choices = [
            self._choice(number, completion, choice)
            for number, completion in enumerate(completions)
            for choice in completion.choices
        ]
        usage = usage_of([completion.usage for completion in completions])
        return self._envelope(choices) | {"usage": usage}

    def _choice(self, number: int, completion: Completion, choice: Choice) -> dict[str, Any]:
        answer = number * self.job.num_choices + choice.index
        prompt = self.echoes[number] if self.echoes is not None else ""
        logprobs = None
        if self.num_top is not None:
            columns = (
                [self.columns[answer].add(choice.logprobs or ())]
                if self.echoes is None
                else [
                    self.columns[answer].add_prompt(self.job.requests[number].prompt, completion.prompt_logprobs or ()),
                    self.columns[answer].add(choice.logprobs or ()),
                ]
            )
            logprobs = joined(columns)
        return choice_of(answer, prompt + choice.text, logprobs, choice.finish_reason)

    # A stream's chunks

    @property
    def tells_place(self) -> bool:
        return self.num_top is not None

    def pass_over(self, answer: int, piece: Piece) -> None:
        self.columns[answer].skip(piece.tokens)

    def opening(self) -> Iterable[dict[str, Any]]:
        if self.echoes is not None and self.num_top is None:
            for answer in range(self.job.num_answers):
                yield self._chunk(choice_of(answer, self.echoes[answer // self.job.num_choices], None, None))

    def scored(self, number: int, scores: PromptScored) -> None:
        self.scores[number] = scores

    def chunk(self, answer: int, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        text = "".join(piece.text for piece in pieces)
        reason = pieces[-1].finish_reason
        if reason in ("error", "abort"):
            return None  # told as an error
        prompt, logprobs = self._prompt(answer)
        records = [piece.logprob for piece in pieces if piece.logprob is not None]
        if self.num_top is not None and records:
            logprobs = joined([logprobs, self.columns[answer].add(records)])
        if not (text or reason or logprobs):
            return None
        return self._chunk(choice_of(answer, prompt + text, logprobs, reason))

    def closing(self, usages: Sequence[Usage]) -> Iterable[dict[str, Any]]:
        if self.wants_usage:
            yield self._envelope([]) | {"usage": usage_of(usages)}

    def _prompt(self, answer: int) -> tuple[str, dict[str, Any] | None]:
        """What of the prompt is told with an answer's first piece, in one event: a reader has both, or neither."""
        number = answer // self.job.num_choices
        if self.echoes is None or answer not in self.untold or number not in self.scores:
            return "", None
        self.untold.discard(answer)
        prompt = self.job.requests[number].prompt
        return self.echoes[number], self.columns[answer].add_prompt(prompt, self.scores[number].logprobs)

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        envelope = self._envelope([choice])
        return envelope | {"usage": None} if self.wants_usage else envelope

    def _envelope(self, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self.job.id,
            "object": "text_completion",
            "created": self.job.created,
            "model": self.job.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def choice_of(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
