"""Work that is done for somebody who waits for it, and for nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


async def while_connected(request: Request, call: Awaitable[T]) -> T:
    """The call's result; when the client hangs up before, the call is cancelled. For requests whose body is read."""
    work, leaving = asyncio.ensure_future(call), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
