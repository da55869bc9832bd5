"""Identical work at the same time is done once: who asks while it is under way waits for the same result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from services.kit.errors import Unavailable

T = TypeVar("T")


class Flight(Generic[T]):
    """A piece of work under way. It is nobody's own: it ends early only when the last who wants it has left."""

    def __init__(self) -> None:
        self.waiting = 0
        self.kept = False
        self.task: asyncio.Task[T]

    def keep(self) -> None:
        """From here on it comes to its end, whoever leaves."""
        self.kept = True


class Flights(Generic[T]):
    """What is under way in this process, by what tells it apart."""

    def __init__(self, *, limit: int) -> None:
        self._flights: dict[Hashable, Flight[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()
        self._limit = limit

    async def join(self, key: Hashable, begin: Callable[[Flight[T]], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """The result and whether this call began the work; Unavailable when too much is under way."""
        flight = self._flights.get(key)
        begun = flight is None
        if flight is None:
            flight = self._begin(key, begin)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), begun
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.kept and not flight.task.done():
                self._land(key, flight)  # whoever comes now begins anew
                flight.task.cancel()

    async def close(self) -> None:
        """Wait for what is still coming to its end."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self, key: Hashable, begin: Callable[[Flight[T]], Coroutine[Any, Any, T]]) -> Flight[T]:
        if len(self._tasks) >= self._limit:
            raise Unavailable("Too many translations are under way. Try again.")
        flight = self._flights[key] = Flight[T]()
        flight.task = asyncio.create_task(begin(flight))
        self._tasks.add(flight.task)
        flight.task.add_done_callback(lambda task: self._ended(key, flight, task))
        return flight

    def _ended(self, key: Hashable, flight: Flight[T], task: asyncio.Task[T]) -> None:
        self._land(key, flight)
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, also when everybody has left

    def _land(self, key: Hashable, flight: Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
