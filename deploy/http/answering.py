"""Answering: a job's answers when they are whole, for as long as its client is there."""

import asyncio
import time

from starlette.requests import Request as HttpRequest

from deploy.http.departure import Departed, unless_departed
from deploy.http.edge import Edge
from deploy.http.job import Job
from engine.completion import Completion
from engine.refusal import Refusal


async def whole(edge: Edge, http: HttpRequest, job: Job) -> list[Completion]:
    """Every prompt's completion. If the client goes first, so does the job."""
    began = time.monotonic()
    try:
        completions = await unless_departed(answers_of(edge, job), http.receive)
    except (Departed, Refusal):
        await edge.left(job)
        raise
    edge.meters.whole.observe(time.monotonic() - began)
    for completion in completions:
        edge.meters.tokens.labels(job.requests[0].adapter or "").inc(completion.usage.completion_tokens)
    return completions


async def answers_of(edge: Edge, job: Job) -> list[Completion]:
    return await asyncio.gather(*(edge.backend.generate(request, job.terms) for request in job.requests))
