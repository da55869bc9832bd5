"""Waiting on a condition, with a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.05


async def until(check: Callable[[], Awaitable[T]], *, within: float = 15.0, saying: str = "the condition") -> T:
    """What `check` returns, once it is truthy."""
    deadline = time.monotonic() + within
    while True:
        found = await check()
        if found:
            return found
        assert time.monotonic() < deadline, f"{saying} did not hold within {within:g} s; last: {found!r}"
        await asyncio.sleep(POLL_SECONDS)
