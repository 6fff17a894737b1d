"""Chat completions as OpenAI shapes them, whole and in chunks. Nothing of the conversation's making."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from deploy.http.job import Job
from deploy.http.logprobs import TokenTexts, chat_logprobs
from engine.completion import Choice, Completion, Piece, Usage
from engine.event import PromptScored


def usage_of(usages: Sequence[Usage]) -> dict[str, Any]:
    """Prompts' usages as one."""
    return {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "total_tokens": sum(usage.total_tokens for usage in usages),
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
    }


def with_thoughts(message: dict[str, Any], reasoning: str) -> dict[str, Any]:
    """What was thought stands under both names that clients look for."""
    return message | {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else message


@dataclass(frozen=True, slots=True)
class ChatShapes:
    """One job's answers. `num_top` is None where no logprobs are wanted."""

    job: Job
    fingerprint: str
    texts: TokenTexts
    num_top: int | None
    wants_usage: bool

    def completion(self, completion: Completion) -> dict[str, Any]:
        return {
            "id": self.job.id,
            "object": "chat.completion",
            "created": self.job.created,
            "model": self.job.model,
            "system_fingerprint": self.fingerprint,
            "choices": [self._choice(choice) for choice in completion.choices],
            "usage": usage_of([completion.usage]),
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        logprobs = None
        if self.num_top is not None:
            logprobs = chat_logprobs(choice.logprobs or (), self.num_top, self.texts)
        return {
            "index": choice.index,
            "message": with_thoughts(message, choice.reasoning),
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    # A stream's chunks

    tells_place: ClassVar[bool] = False

    def pass_over(self, answer: int, piece: Piece) -> None: ...

    def opening(self) -> Iterable[dict[str, Any]]:
        for index in range(self.job.num_choices):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def scored(self, number: int, scores: PromptScored) -> None: ...

    def chunk(self, answer: int, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        text = "".join(piece.text for piece in pieces)
        reasoning = "".join(piece.reasoning for piece in pieces)
        reason = pieces[-1].finish_reason
        if reason in ("error", "abort"):
            return None  # told as an error
        records = [piece.logprob for piece in pieces if piece.logprob is not None]
        has_records = self.num_top is not None and bool(records)
        if not (text or reasoning or reason or has_records):
            return None
        logprobs = chat_logprobs(records, self.num_top or 0, self.texts) if has_records else None
        delta = with_thoughts({"content": text} if text else {}, reasoning)
        return self._chunk(answer, delta, logprobs, reason)

    def closing(self, usages: Sequence[Usage]) -> Iterable[dict[str, Any]]:
        if self.wants_usage:
            yield self._envelope([]) | {"usage": usage_of(usages)}

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        return self._envelope([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])

    def _envelope(self, choices: list[Any]) -> dict[str, Any]:
        envelope = {
            "id": self.job.id,
            "object": "chat.completion.chunk",
            "created": self.job.created,
            "model": self.job.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        return envelope | {"usage": None} if self.wants_usage else envelope
