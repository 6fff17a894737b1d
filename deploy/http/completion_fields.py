"""CompletionFields: the body of a plain completion: one prompt or many, as texts or as token ids."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from deploy.http.chat_fields import NotYet
from deploy.http.sampling_fields import SamplingFields
from engine.limits import MAX_LOGPROBS
from engine.refusal import BadRequest

MAX_PROMPTS = 128
MAX_ANSWERS = 256  # prompts times choices

MAX_IDS = 1 << 20

# Each fails at its first fault: a million wrong entries are one refusal.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
Prompts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
)


class CompletionFields(SamplingFields):
    """Prompts, and how they are to go on."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None  # only where it says the same as n
    suffix: NotYet = None

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Fields that speak of the same must not contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options are for streams; stream is not set", "stream_options")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise BadRequest("best_of other than n is not supported", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise BadRequest("max_tokens 0 answers nothing without echo", "max_tokens")
        num_answers = len(self.prompts) * (self.n or 1)
        if num_answers > MAX_ANSWERS:
            raise BadRequest(f"prompts times n is {num_answers}; {MAX_ANSWERS} is the limit", "n")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or many, as many."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
