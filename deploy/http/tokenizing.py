"""Tokenizing: text to token ids and back, for clients that count or score."""

from typing import Annotated, Self

from fastapi import APIRouter, Depends
from pydantic import Field, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from deploy.http.chat_fields import MAX_MESSAGES, Message, plain
from deploy.http.client_words import named
from deploy.http.completion_fields import MAX_IDS
from deploy.http.document import failures, takes
from deploy.http.dress import reply
from deploy.http.edge import Edge
from deploy.http.errors import ModelNotFound
from deploy.http.logprobs import TokenTexts
from deploy.http.payload import Fields, body_of
from engine.refusal import BadRequest


class TokenizeFields(Fields):
    """A text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None  # of a text: whether it is a whole prompt
    add_generation_prompt: bool | None = None  # of a conversation
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def agree(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise BadRequest("either a prompt or messages are wanted", "prompt")
        return self


class DetokenizeFields(Fields):
    """Token ids."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_IDS, fail_fast=True)]


def tokenizing(edge: Edge) -> APIRouter:
    router = APIRouter(tags=["tokens"], responses=failures(404))
    texts = TokenTexts(edge.tokenizer)

    @router.post("/tokenize", openapi_extra=takes(TokenizeFields))
    async def tokenize(
        http: HttpRequest, fields: Annotated[TokenizeFields, Depends(body_of(TokenizeFields))]
    ) -> Response:
        """The token ids of a text or of a conversation."""
        await check_model(fields.model)
        with named(prompt="prompt" if fields.messages is None else "messages"):
            tokens = await edge.encoded(lambda: encode(fields))
        answer = {
            "count": len(tokens),
            "max_model_len": (await edge.backend.card()).capacity.max_context,
            "tokens": tokens,
        }
        if fields.return_token_strs:
            answer["token_strs"] = [texts.text(token) for token in tokens]
        return reply(http.scope, answer)

    @router.post("/detokenize", openapi_extra=takes(DetokenizeFields))
    async def detokenize(
        http: HttpRequest, fields: Annotated[DetokenizeFields, Depends(body_of(DetokenizeFields))]
    ) -> Response:
        """The text of token ids."""
        await check_model(fields.model)
        for token in fields.tokens:
            if token >= edge.tokenizer.vocab_size:
                raise BadRequest(
                    f"tokens has {token}; token ids run from 0 to {edge.tokenizer.vocab_size - 1}", "tokens"
                )
        return reply(http.scope, {"prompt": await edge.encoded(lambda: edge.tokenizer.decode(fields.tokens))})

    @router.get("/tokenizer_info")
    async def tokenizer_info(http: HttpRequest) -> Response:
        """What clients ask who render conversations, or mark ends, themselves."""
        spec = edge.tokenizer.spec
        return reply(http.scope, {**spec.named_tokens, "chat_template": spec.chat_templates.get("default")})

    def encode(fields: TokenizeFields) -> list[int]:
        if fields.messages is None:
            tokens = edge.tokenizer.encode(fields.prompt or "", special=True)
            has_extra = fields.add_special_tokens is False and tokens[:1] == edge.tokenizer.encode("", special=True)[:1]
            return tokens[1:] if has_extra else tokens
        messages = plain(fields.messages)
        return edge.tokenizer.encode_chat(messages, add_generation_prompt=fields.add_generation_prompt is not False)

    async def check_model(name: str | None) -> None:
        """All models here have one tokenizer, but a wrong name shall not pass."""
        card = await edge.backend.card()
        if name not in (None, card.name, *(adapter.name for adapter in await edge.backend.adapters())):
            raise ModelNotFound(f"the model {(name or '')[:64]!r} does not exist", "model")

    return router
