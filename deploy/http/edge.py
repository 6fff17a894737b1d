"""Edge: what the routes share: the backend, the tokenizer, the clock, and the way from a body to accepted requests."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from actors.refusals import Overloaded, UnknownRequest
from deploy.http.backend import Backend, ModelCard, Terms
from deploy.http.errors import ModelNotFound
from deploy.http.job import Job, check_asked_again, job_id, new_stem, parse_position, request_ids
from deploy.http.keys import NO_KEYS, Keys
from deploy.http.meters import Meters
from deploy.http.sampling_fields import SamplingFields
from engine.limits import check
from engine.refusal import BadRequest, PromptTooLong
from engine.request import Request, Sampling
from loaders.tokenizer import Tokenizer

LEASE_SECONDS = 30.0  # for who went away and may come back
ENCODING_SECONDS = 10.0
NUM_ENCODERS = 2
DEFAULT_MAX_TOKENS = 2048

Result = TypeVar("Result")


@dataclass(slots=True)
class Edge:
    """Owned by the app, for as long as it runs."""

    backend: Backend
    tokenizer: Tokenizer
    keys: Keys = NO_KEYS
    meters: Meters = field(default_factory=Meters)
    now: Callable[[], float] = time.time
    encoders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(NUM_ENCODERS, "encode"))

    async def encoded(self, encode: Callable[[], Result]) -> Result:
        """What the tokenizer makes of a text, beside the event loop and not for ever."""
        work = self.encoders.submit(encode)
        try:
            async with asyncio.timeout(ENCODING_SECONDS):
                return await asyncio.wrap_future(work)
        except TimeoutError:
            if work.cancelled():  # it had not begun
                raise Overloaded("other texts are being tokenized") from None
            raise PromptTooLong(
                f"the text takes more than {ENCODING_SECONDS:g} seconds to tokenize", "prompt"
            ) from None

    async def adapter_for(self, fields: SamplingFields, card: ModelCard) -> str | None:
        """The adapter that `model` and `adapter` name together."""
        named = None if fields.model in (None, card.name) else fields.model
        if named is not None and fields.adapter not in (None, named):
            raise BadRequest("model and adapter name two different adapters", "adapter")
        adapter = fields.adapter if named is None else named
        if adapter is not None and adapter not in {known.name for known in await self.backend.adapters()}:
            param = "model" if named is not None else "adapter"
            raise ModelNotFound(f"the model {adapter[:64]!r} does not exist", param)
        return adapter

    async def job_of(
        self,
        http: HttpRequest,
        prefix: str,
        fields: SamplingFields,
        prompts: Sequence[tuple[int, ...]],
        sampling_for: Callable[[int], Sampling],
    ) -> tuple[Job, list[int] | None]:
        """A request for each prompt, all of them within the limits.

        With a Last-Event-ID it is the job that this names, and how much of it the client has.
        """
        card, tenant = await self.backend.card(), tenant_of(http)
        adapter = await self.adapter_for(fields, card)
        priority = fields.priority or 0
        if len(self.keys) and priority < 0:
            raise BadRequest(
                "priority below 0 goes before other tenants' requests; 0 or more is for everybody", "priority"
            )
        key, last = http.headers.get("idempotency-key"), http.headers.get("last-event-id")
        public_id, asked, had = job_id(prefix, new_stem(tenant, key), len(prompts)), None, None
        if last is not None and fields.stream:
            public_id, asked, had = parse_position(last)
        if len(request_ids(public_id)) != len(prompts):
            raise BadRequest("Last-Event-ID is of a request with another number of prompts", "Last-Event-ID")
        requests = tuple(
            Request(request_id, prompt, sampling_for(len(prompt)), adapter, tenant, priority)
            for request_id, prompt in zip(request_ids(public_id), prompts, strict=True)
        )
        for request in requests:
            check(request, card.capacity)
            if request.sampling.n > card.max_sequences:
                raise BadRequest(
                    f"n is {request.sampling.n}; this server gives a prompt at most {card.max_sequences} answers, "
                    "as many as it writes at once",
                    "n",
                )
        if asked is not None:
            check_asked_again(requests, asked)
        deadline = None if fields.deadline_ms is None else fields.deadline_ms / 1000
        terms = Terms(deadline, LEASE_SECONDS)
        job = Job(public_id, adapter or card.name, int(self.now()), requests, terms, is_kept=key is not None)
        return job, had

    async def cancel(self, job: Job) -> None:
        for request in job.requests:
            with suppress(UnknownRequest):  # never accepted
                await self.backend.cancel(request.id, request.tenant)

    async def left(self, job: Job) -> None:
        """Its client went away, or was refused. Who has a key may come back, or has used one of a request that goes on;
        until then the lease keeps the job.
        """
        if not job.is_kept:
            await self.cancel(job)


def tenant_of(http: HttpRequest) -> str:
    tenant: str = http.state.tenant
    return tenant


def room_for(card: ModelCard, num_prompt: int) -> int:
    """How many tokens may be answered where the request does not say."""
    room = card.capacity.max_context - num_prompt
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {num_prompt} tokens; this model takes {card.capacity.max_context}, the answer included",
            "prompt",
        )
    return min(room, DEFAULT_MAX_TOKENS)
