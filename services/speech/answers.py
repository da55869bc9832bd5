"""What keeps a repeated request from being done twice in this process. Between processes the hold's id does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cachetools import TTLCache

from services.speech.domain import HoldId, Job, Paid

ENTRY_BYTES = 1_024
"""What an answer takes beside its text."""


class _Turn:
    """One job's twins, one behind the other."""

    def __init__(self) -> None:
        self.lock, self.wanted = asyncio.Lock(), 0


class Answers:
    """The answers of requests that may come again, bounded by what they take in memory; the oldest ones go first."""

    def __init__(self, *, size_bytes: int, ttl_seconds: float) -> None:
        self._kept: TTLCache[HoldId, Paid] = TTLCache(
            size_bytes, ttl_seconds, getsizeof=lambda paid: ENTRY_BYTES + sys.getsizeof(paid.transcript.text)
        )
        self._turns: dict[HoldId, _Turn] = {}

    def find(self, job: Job) -> Paid | None:
        """The answer of an earlier call."""
        return self._kept.get(job.hold_id)

    def keep(self, job: Job, paid: Paid) -> None:
        """Keep the answer of a job that may come again; one larger than all the room is not kept."""
        if job.may_repeat and self._kept.getsizeof(paid) <= self._kept.maxsize:
            self._kept[job.hold_id] = paid

    @asynccontextmanager
    async def turn(self, job: Job) -> AsyncIterator[None]:
        """One call of a job at a time: a twin waits, and then finds the answer, or tries in its turn."""
        if not job.may_repeat:
            yield
            return
        turn = self._turns.setdefault(job.hold_id, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[job.hold_id]
