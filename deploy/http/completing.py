"""Completing: the two routes that answer prompts. From fields to requests, and from completions to OpenAI's shapes."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from deploy.http.answering import whole
from deploy.http.backend import ModelCard
from deploy.http.chat_fields import ChatFields
from deploy.http.chat_shapes import ChatShapes
from deploy.http.client_words import asked_for
from deploy.http.completion_fields import CompletionFields
from deploy.http.completion_shapes import CompletionShapes
from deploy.http.document import ANSWERS, takes
from deploy.http.dress import reply
from deploy.http.edge import Edge, room_for
from deploy.http.job import Job
from deploy.http.logprobs import TokenTexts
from deploy.http.payload import body_of
from deploy.http.sampling_fields import SamplingFields, sampling_from
from deploy.http.streaming import Chunks, Streamed, opened
from engine.request import Sampling

DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI has it


def completing(edge: Edge) -> APIRouter:
    router = APIRouter(tags=["answers"], responses=ANSWERS)
    texts = TokenTexts(edge.tokenizer)

    @router.post("/v1/chat/completions", openapi_extra=takes(ChatFields))
    async def create_chat_completion(
        http: HttpRequest, fields: Annotated[ChatFields, Depends(body_of(ChatFields))]
    ) -> Response:
        """Go on with a conversation."""
        with asked_for("messages"):
            card = await edge.backend.card()
            thinking = bool(fields.is_thinking)
            messages = fields.plain_messages()
            prompt = await edge.encoded(lambda: tuple(edge.tokenizer.encode_chat(messages, thinking=thinking)))
            wanted = fields.max_completion_tokens or fields.max_tokens
            num_top = (fields.top_logprobs or 0) if fields.logprobs else None

            def sampling_for(num_prompt: int) -> Sampling:
                return sampling_from(fields, wanted or room_for(card, num_prompt), num_top, None)

            job, had = await edge.job_of(http, "chatcmpl-", fields, [prompt], sampling_for)
            shapes = ChatShapes(job, fingerprint_of(card), texts, num_top, wants_usage(fields))
            if fields.stream:
                return await stream(edge, http, job, shapes, had)
            (completion,) = await whole(edge, http, job)
            return reply(http.scope, shapes.completion(completion), headers={"x-request-id": job.id})

    @router.post("/v1/completions", openapi_extra=takes(CompletionFields))
    async def create_completion(
        http: HttpRequest, fields: Annotated[CompletionFields, Depends(body_of(CompletionFields))]
    ) -> Response:
        """Go on with one text or many."""
        with asked_for("prompt"):
            prompts = await edge.encoded(lambda: [ids_of(edge, prompt) for prompt in fields.prompts])
            card = await edge.backend.card()
            wants_scores = fields.echo and (fields.logprobs is not None or fields.max_tokens == 0)

            def sampling_for(num_prompt: int) -> Sampling:
                wanted = fields.max_tokens
                if wanted is None:
                    wanted = min(DEFAULT_COMPLETION_TOKENS, room_for(card, num_prompt))
                return sampling_from(fields, wanted, fields.logprobs, (fields.logprobs or 0) if wants_scores else None)

            job, had = await edge.job_of(http, "cmpl-", fields, prompts, sampling_for)
            echoes = tuple(text_of(edge, prompt) for prompt in fields.prompts) if fields.echo else None
            fingerprint, usage = fingerprint_of(card), wants_usage(fields)
            shapes = CompletionShapes(job, fingerprint, texts, fields.logprobs, usage, echoes, had or ())
            if fields.stream:
                return await stream(edge, http, job, shapes, had)
            completions = await whole(edge, http, job)
            return reply(http.scope, shapes.completion(completions), headers={"x-request-id": job.id})

    return router


async def stream(edge: Edge, http: HttpRequest, job: Job, chunks: Chunks, had: list[int] | None) -> Response:
    return Streamed(edge, http, job, await opened(edge, job, had, again=chunks.tells_place), chunks, had)


def ids_of(edge: Edge, prompt: str | list[int]) -> tuple[int, ...]:
    """A text is taken as a whole prompt: what its writer means as control tokens are such."""
    return tuple(edge.tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else prompt)


def text_of(edge: Edge, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else edge.tokenizer.decode(prompt)


def wants_usage(fields: SamplingFields) -> bool:
    return bool(fields.stream and fields.stream_options is not None and fields.stream_options.include_usage)


def fingerprint_of(card: ModelCard) -> str:
    return f"fp_{card.fingerprint[:16]}"
