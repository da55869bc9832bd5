"""Finishes or undoes what a crash left behind. Any replica may run it at any time: every statement is conditional."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog

from services.chat.announcer import Announcer
from services.chat.billing import Billing
from services.chat.domain import LEASE, Ending, TaskId, TaskState
from services.chat.errors import LeaseLost
from services.chat.metrics import LEASES_EXPIRED, OLDEST_QUEUED_SECONDS, TASKS
from services.chat.settler import Settler
from services.chat.store.runs import RunStore
from services.chat.store.upkeep import UpkeepStore
from services.chat.usecases.turns import TurnUseCases
from services.kit.errors import DomainError
from services.kit.logs import where
from services.kit.postgres.errors import is_down

log = structlog.get_logger()

INTERVAL_SECONDS = 2.0
BATCH = 200
STALE_ADMISSION = timedelta(seconds=15)
HINT_AGE = timedelta(seconds=2)
SETTLEMENT_AGE = timedelta(seconds=3)
PURGE_EVERY = 150  # rounds, five minutes

POISON = Ending(TaskState.FAILED, error_code="poison", error_detail="The run ended its worker three times; given up.")
DEADLINE = Ending(TaskState.FAILED, error_code="deadline_exceeded", error_detail="The run took longer than it may.")


class Reaper:
    """One round every two seconds. Leases and deadlines are judged only after one lease of unbroken contact with
    Postgres, so that an outage, in which nobody could heartbeat, fails nobody.
    """

    def __init__(
        self,
        *,
        upkeep: UpkeepStore,
        runs: RunStore,
        turns: TurnUseCases,
        settler: Settler,
        billing: Billing,
        announcer: Announcer,
        clock: Callable[[], float],
        tell_ready: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._upkeep, self._runs, self._turns, self._settler = upkeep, runs, turns, settler
        self._billing, self._announcer, self._clock = billing, announcer, clock
        self._tell_ready = tell_ready
        self._in_contact_since: float | None = None
        self._round = 0

    async def run(self) -> None:
        """Go round for ever. A round that works, billing apart, is what makes the process ready: it asks the tables."""
        while True:
            ready = True
            try:
                await self.go_round()
            except Exception as error:
                ready = isinstance(error, DomainError)
                if is_down(error):
                    self._in_contact_since = None
                elif not isinstance(error, DomainError):
                    log.error("reaper_failed", **where(error))
            await self._tell_ready(ready)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def go_round(self) -> None:
        """Look after everything once; what needs only Postgres and NATS comes before what needs billing."""
        await self._announce_unclaimed()
        await self._turns.end_overdue_cancels(limit=BATCH)
        if self._judges_leases():
            await self._requeue()
            await self._end(await self._upkeep.poisoned(BATCH), POISON)
            await self._end(await self._runs.overdue(BATCH), DEADLINE)
            await self._upkeep.fail_expired_queued()
        await self._upkeep.abandon_stale(STALE_ADMISSION)
        if self._round % PURGE_EVERY == 0:
            await self._upkeep.purge_keys()
        self._round += 1
        await self._tell_depths()
        await self._settle()
        await self._remove_abandoned()
        await self._upkeep.purge_deleted_sessions(BATCH)

    async def _tell_depths(self) -> None:
        depths = await self._upkeep.depths()
        TASKS.labels("queued").set(depths.queued)
        TASKS.labels("running").set(depths.running)
        TASKS.labels("unsettled").set(depths.unsettled)
        OLDEST_QUEUED_SECONDS.set(depths.oldest_queued_seconds)

    def _judges_leases(self) -> bool:
        """Whether Postgres was there for a whole lease, so that every living agent could heartbeat."""
        now = self._clock()
        if self._in_contact_since is None:
            self._in_contact_since = now
        return now - self._in_contact_since >= LEASE.total_seconds()

    async def _announce_unclaimed(self) -> None:
        await self._announcer.work_again(await self._upkeep.unclaimed(HINT_AGE, BATCH))

    async def _requeue(self) -> None:
        requeued = await self._upkeep.requeue_expired(BATCH)
        if requeued:
            LEASES_EXPIRED.inc(len(requeued))
            log.warning("leases_expired", tasks=len(requeued))
        await self._announcer.work_again(requeued)

    async def _end(self, runs: Sequence[tuple[TaskId, int]], ending: Ending) -> None:
        for task_id, attempt in runs:
            try:
                task = await self._runs.end(task_id, attempt, ending)
            except LeaseLost:  # the run ended meanwhile, or another replica's reaper was first
                continue
            log.warning("task_given_up", task_id=str(task_id), reason=ending.error_code)
            self._settler.enqueue(task)

    async def _settle(self) -> None:
        owed = await self._upkeep.unsettled(SETTLEMENT_AGE, BATCH)
        if owed:
            await self._settler.settle_late(owed)

    async def _remove_abandoned(self) -> None:
        abandoned = await self._upkeep.abandoned(BATCH)
        if abandoned:
            await self._billing.release(abandoned)
            await self._upkeep.remove(abandoned)
