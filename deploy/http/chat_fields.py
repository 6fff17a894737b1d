"""ChatFields: the body of a chat completion. What OpenAI has and this server has not is named here, and refused."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from deploy.http.payload import Fields
from deploy.http.sampling_fields import SamplingFields, integer
from engine.limits import MAX_LOGPROBS
from engine.refusal import BadRequest

MAX_MESSAGES = 4096
NotYet = Annotated[None, Field(description="Not supported by this server.")]
Nothing = Annotated[list[Any], Field(max_length=0)] | None


class TextPart(Fields):
    """A part of a content. Text is the only kind that is taken; nothing is ever fetched from a URL."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]


class GivenMessage(Fields):
    """What the system or the user said."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class AnswerMessage(Fields):
    """What the model said before. Taken in the form in which it was given, with the fields that were empty then."""

    role: Literal["assistant"]
    content: Content | None  # None: it said nothing
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None
    annotations: Nothing = None


Message = Annotated[GivenMessage | AnswerMessage, Field(discriminator="role")]


class TemplateWords(Fields):
    """The words for a chat template that a request may set. A template itself never comes with a request."""

    enable_thinking: bool | None = None


class TextFormat(Fields):
    type: Literal["text"]


class ChatFields(SamplingFields):
    """A conversation, and how it is to go on."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: int | None = integer("max_tokens")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: TemplateWords | None = None

    response_format: TextFormat | None = None
    audio: NotYet = None
    function_call: NotYet = None
    functions: NotYet = None
    modalities: NotYet = None
    parallel_tool_calls: NotYet = None
    prediction: NotYet = None
    tool_choice: NotYet = None
    tools: NotYet = None
    verbosity: NotYet = None
    web_search_options: NotYet = None

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Fields that speak of the same must not contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options are for streams; stream is not set", "stream_options")
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise BadRequest(
                "max_tokens and max_completion_tokens are two words for one thing, and differ", "max_tokens"
            )
        for name in ("max_tokens", "max_completion_tokens"):
            if getattr(self, name) == 0:
                raise BadRequest(f"{name} must be at least 1: a chat has nothing to answer with otherwise", name)
        return self

    @property
    def is_thinking(self) -> bool | None:
        """Whether the model shall think first; None: as it likes."""
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.enable_thinking is not None:
            return self.chat_template_kwargs.enable_thinking
        return None if self.reasoning_effort is None else self.reasoning_effort != "none"

    def plain_messages(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them."""
        return plain(self.messages)


def plain(messages: Sequence[GivenMessage | AnswerMessage]) -> list[dict[str, Any]]:
    """Messages as a chat template takes them: with a content each, and without what was empty."""
    dumped = (message.model_dump(exclude_none=True, exclude={"annotations", "tool_calls"}) for message in messages)
    return [message | {"content": message.get("content", "")} for message in dumped]
