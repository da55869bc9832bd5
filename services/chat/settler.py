"""The last step of a turn: what ended is paid or given back in batches, then its waiters are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from services.chat.announcer import Announcer
from services.chat.billing import Billing
from services.chat.domain import Task
from services.chat.metrics import SETTLEMENTS_POSTPONED
from services.chat.store.upkeep import Settlement, UpkeepStore, settlement_of
from services.kit import telemetry
from services.kit.errors import DomainError
from services.kit.logs import where
from services.kit.postgres.errors import is_down

log = structlog.get_logger()

BATCH = 500


@dataclass(frozen=True, slots=True)
class _Ended:
    """An ended task, the number of its run's last event, and its place in its trace."""

    task: Task
    last_event: int
    traceparent: str


class Settler:
    """Settles ended tasks as they come; while one batch is on its way the next one gathers.

    Nothing here is needed for correctness: a batch that is lost is found again by the reaper in the tasks' rows.
    """

    def __init__(self, billing: Billing, store: UpkeepStore, announcer: Announcer) -> None:
        self._billing, self._store, self._announcer = billing, store, announcer
        self._waiting: list[_Ended] = []
        self._any = asyncio.Event()

    def enqueue(self, task: Task, last_event: int = 0) -> None:
        """Have an ended task settled and announced soon."""
        self._waiting.append(_Ended(task, last_event, telemetry.traceparent()))
        self._any.set()

    async def settle(self, task: Task) -> None:
        """Settle and announce one ended task now."""
        await self._settle_batch([_Ended(task, 0, telemetry.traceparent())])

    async def run(self) -> None:
        """Settle for ever."""
        while True:
            await self._any.wait()
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            if not self._waiting:
                self._any.clear()
            try:
                await self._settle_batch(batch)
            except Exception as error:  # a defect; the reaper finds what is left of the batch
                log.error("settler_failed", tasks=len(batch), **where(error))

    async def _settle_batch(self, batch: Sequence[_Ended]) -> None:
        """Settle, then announce; when billing or Postgres is away the waiters are told all the same."""
        charged: dict[UUID, int] = {}
        try:
            with telemetry.batch("settle", [ended.traceparent for ended in batch]):
                charged = await self._settle_rows([settlement_of(ended.task) for ended in batch])
        except DomainError as error:
            SETTLEMENTS_POSTPONED.inc(len(batch))
            log.warning("settlement_postponed", tasks=len(batch), reason=error.reason)
        except Exception as error:
            SETTLEMENTS_POSTPONED.inc(len(batch))
            if not is_down(error):
                log.error("settlement_failed", tasks=len(batch), **where(error))
        for ended in batch:
            await self._announcer.ended(_settled(ended.task, charged.get(ended.task.id)), ended.last_event)

    async def settle_late(self, settlements: Sequence[Settlement]) -> None:
        """Settle and announce what a crash or an outage left; raises when billing or Postgres is still away."""
        charged = await self._settle_rows(settlements)
        for found in settlements:
            await self._announcer.ended(_settled(found.task, charged.get(found.task.id)))

    async def _settle_rows(self, settlements: Sequence[Settlement]) -> dict[UUID, int]:
        """Pay or release, then note it in the rows; what each task was charged in nano-credits."""
        paid = [(found.task.id, found.usage) for found in settlements if found.usage is not None]
        unpaid = [found.task.id for found in settlements if found.usage is None]
        charged: dict[UUID, int] = dict(await self._billing.settle(paid))
        await self._billing.release(unpaid)
        charged |= dict.fromkeys(unpaid, 0)
        await self._store.mark_settled(list(charged.items()))
        return charged


def _settled(task: Task, charged: int | None) -> Task:
    return task if charged is None else task.after_settlement(charged)
