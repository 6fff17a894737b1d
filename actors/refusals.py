"""Refusals of the process layer: a request's fate when the reason is not in the request itself."""

from typing import ClassVar

from engine.refusal import QueueFull, Refusal


class Overloaded(QueueFull):
    """The work accepted already is as much as may wait; it says when to come back."""

    def __init__(self, message: str, param: str | None = None, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message, param)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, str | None, float]]:  # type: ignore[override]
        return type(self), (self.message, self.param, self.retry_after_seconds)


class Conflict(Refusal):
    """The id, or the idempotency key, belongs to a request with another body."""

    code: ClassVar[str] = "idempotency_conflict"


class UnknownRequest(Refusal):
    """No request of this id is known here, or it is another's."""

    code: ClassVar[str] = "unknown_request"


class DeadlinePassed(Refusal):
    """The time that the request was given is over, or too short for anything."""

    code: ClassVar[str] = "deadline_passed"


class RequestPoisoned(Refusal):
    """The request crashed the engine, and again when it was tried alone; or whoever read it."""

    code: ClassVar[str] = "request_poisoned"


class JournalFailing(Refusal):
    """The journal cannot be written, so nothing new can be accepted."""

    code: ClassVar[str] = "journal_failing"


class JournalTaken(Refusal):
    """Another process owns this journal."""

    code: ClassVar[str] = "journal_taken"


class Unavailable(Refusal):
    """The system is not running, is starting, or is shutting down."""

    code: ClassVar[str] = "unavailable"
