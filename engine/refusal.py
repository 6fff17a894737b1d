"""Refusals: the expected troubles, each an answer of one clear sentence. Nothing here is a crash.

A sentence says what was wanted and what came. `code` is for programs, `param` names the field at fault.
"""

from reprlib import Repr
from typing import ClassVar


class Refusal(Exception):
    """Something asked for cannot be done, and the asker is told why in one sentence."""

    code: ClassVar[str] = "refused"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[type["Refusal"], tuple[str, str | None]]:
        return type(self), (self.message, self.param)


class BadRequest(Refusal):
    """A field of the request is malformed or out of range."""

    code = "bad_request"


class PromptTooLong(Refusal):
    """The prompt, or the prompt with what was asked for, does not fit the context."""

    code = "context_length_exceeded"


class UnknownAdapter(Refusal):
    """No adapter of this name is attached."""

    code = "unknown_adapter"


class QueueFull(Refusal):
    """The queue holds as much work as it may; come back later."""

    code = "queue_full"


class UnknownModel(Refusal):
    """No model of this name or at this place."""

    code = "unknown_model"


class BrokenFile(Refusal):
    """A file is damaged, incomplete or not what its name says."""

    code = "broken_file"


class Unsupported(Refusal):
    """The thing is well formed, but this system does not do it."""

    code = "unsupported"


class Shown(Repr):
    """Values as they may stand in a sentence: whoever wrote them, however large or deep, never long."""

    def repr_int(self, x: int, level: int) -> str:
        return f"a number of {x.bit_length()} bits" if x.bit_length() > 128 else repr(x)


def shown(value: object) -> str:
    """`shown("x" * 10**6)` is 30 characters long, and `shown(10**5000)` raises nothing."""
    text = Shown().repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
