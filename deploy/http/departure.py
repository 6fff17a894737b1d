"""Departure: a client that goes away is noticed at once, whatever is being done for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")


class Departed(Exception):
    """The client went away; nobody is left to be answered."""


async def departure(receive: Receive) -> None:
    """Returns when the client is gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_departed(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """What the work returns, or Departed; it is cancelled then."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(departure(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Departed
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
