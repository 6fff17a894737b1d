"""Completion: what a request came to. Built from events alone, so whoever has the events has the answer."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from engine.answer import AnswerState
from engine.event import ChoiceEnded, Event, FinishReason, PromptScored, Started, TokenEvent, TokenLogprob
from engine.request import Request
from engine.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Piece(NamedTuple):
    """What one event adds to one choice. `position` counts the choice's tokens before this piece."""

    choice: int
    position: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    logprob: TokenLogprob | None = None
    message: str | None = None  # what went wrong, if the reason is "error"


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to a request."""

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A request's answer: its choices, and, as most ask for one only, the first one's fields."""

    id: str
    choices: tuple[Choice, ...]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.choices[0].tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.choices[0].finish_reason

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, `choices` only where there are several."""
        plain: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage) | {"total_tokens": self.usage.total_tokens},
        }
        first = self.choices[0]
        if first.reasoning:
            plain["reasoning"] = first.reasoning
        if first.logprobs is not None:
            plain["logprobs"] = [record._asdict() for record in first.logprobs]
        if first.message is not None:
            plain["message"] = first.message
        if len(self.choices) > 1:
            plain["choices"] = [asdict(choice) for choice in self.choices]
        return plain


@dataclass(slots=True)
class ChoiceRecord:
    """One choice so far."""

    state: AnswerState
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    message: str | None = None


class Transcript:
    """The fold of one request's events. Give it each event once, in order."""

    def __init__(self, request: Request, vocabulary: Vocabulary) -> None:
        self.request = request
        self._vocabulary = vocabulary
        begin = vocabulary.begin(request.sampling.stop, request.prompt, request.sampling.min_tokens)
        self._choices = [ChoiceRecord(begin) for _ in range(request.sampling.n)]
        self._cached_tokens = 0
        self._prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def is_finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self._choices)

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of every choice: what a resumed request brings along."""
        return tuple(tuple(choice.tokens) for choice in self._choices)

    def add(self, event: Event) -> Piece | None:
        """Take an event; what it adds to the answer, if it is about the answer."""
        match event:
            case Started():
                self._cached_tokens = event.cached_tokens
            case PromptScored():
                self._prompt_logprobs = event.logprobs
            case TokenEvent():
                return self._add_token(event)
            case ChoiceEnded():
                return self._end(event)
        return None

    def completion(self) -> Completion:
        """The answer as it stands."""
        wants_logprobs = self.request.sampling.logprobs is not None
        choices = tuple(
            Choice(
                index,
                "".join(choice.text),
                tuple(choice.tokens),
                choice.finish_reason,
                "".join(choice.reasoning),
                tuple(choice.logprobs) if wants_logprobs else None,
                choice.message,
            )
            for index, choice in enumerate(self._choices)
        )
        return Completion(self.request.id, choices, self.usage(), self._prompt_logprobs)

    def usage(self) -> Usage:
        written = sum(len(choice.tokens) for choice in self._choices)
        return Usage(len(self.request.prompt), written, self._cached_tokens)

    def _add_token(self, event: TokenEvent) -> Piece:
        choice = self._choices[event.choice]
        assert event.position == len(choice.tokens), "a token is missing or came twice"
        choice.tokens.append(event.token)
        is_silent = event.token in self.request.sampling.stop_token_ids and event.finish_reason == "stop"
        token_bytes = b"" if is_silent else self._vocabulary.bytes_of(event.token)
        choice.state, said = choice.state.step(token_bytes)
        text, reasoning = said.text, said.reasoning
        if event.finish_reason is not None:
            choice.state, rest = choice.state.finish()
            text, reasoning = text + rest.text, reasoning + rest.reasoning
            choice.finish_reason = event.finish_reason
        choice.text.append(text)
        choice.reasoning.append(reasoning)
        if event.logprob is not None:
            choice.logprobs.append(event.logprob)
        return Piece(event.choice, event.position, text, (event.token,), event.finish_reason, reasoning, event.logprob)

    def _end(self, event: ChoiceEnded) -> Piece:
        choice = self._choices[event.choice]
        choice.state, rest = choice.state.finish()
        choice.finish_reason, choice.message = event.finish_reason, event.message
        choice.text.append(rest.text)
        choice.reasoning.append(rest.reasoning)
        position = len(choice.tokens)
        return Piece(event.choice, position, rest.text, (), event.finish_reason, rest.reasoning, message=event.message)
