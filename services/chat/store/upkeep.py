"""What the reaper reads and repairs: every crash leaves a row that says what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, LiteralString
from uuid import UUID

from services.chat.domain import IDEMPOTENCY_KEY_LIFE, MAX_FAILURES, Task, TaskId, TaskState, Usage, Waiting
from services.chat.metrics import TASKS_ENDED
from services.chat.store.rows import to_task
from services.chat.store.turns import answer_of
from services.kit.postgres.pool import CHORE_SECONDS, NO_PARAMETERS, Database, DictRow

ABANDON_STALE: Final = """
    update chat.tasks set state = 'abandoned', updated_at = now()
    where state = 'admitted' and created_at < now() - cast(%(age)s as interval)
"""
ABANDONED: Final = "select id from chat.tasks where state = 'abandoned' limit %(limit)s"
# An idempotency key of a turn that was given up must not answer for it.
REMOVE: Final = """
    with forgotten as (
      delete from chat.idempotency_keys k using chat.tasks t
      where t.id = any(%(tasks)s) and t.state = 'abandoned' and k.resource_id = t.id
        and k.user_id = t.user_id and k.route = t.kind || ':' || t.session_id
    )
    delete from chat.tasks where id = any(%(tasks)s) and state = 'abandoned'
"""

# Another replica's reaper skips the rows this one has locked; whoever comes second finds them changed.
REQUEUE: Final = """
    update chat.tasks t set failures = t.failures + 1, state = 'queued', lease_until = null, worker = null,
      published_at = now(), updated_at = now()
    where t.id = any (array(
      select id from chat.tasks
      where state = 'running' and lease_until < now() and failures + 1 < %(most)s and cancel_requested_at is null
      limit %(limit)s for update skip locked))
    returning t.id, coalesce(t.traceparent, '') as traceparent
    """
POISONED: Final = """
    select id, attempt from chat.tasks
    where state = 'running' and lease_until < now() and failures + 1 >= %(most)s and cancel_requested_at is null
    limit %(limit)s
    """
# Queued for longer than a hint takes and not announced since: to be announced again.
UNCLAIMED: Final = """
    update chat.tasks set published_at = now()
    where id = any (array(
      select id from chat.tasks
      where state = 'queued' and (published_at is null or published_at < now() - cast(%(age)s as interval))
      order by created_at limit %(limit)s for update skip locked))
    returning id, coalesce(traceparent, '') as traceparent
    """
EXPIRED_QUEUED: Final = """
    with expired as (
      update chat.tasks set state = 'failed', error_code = 'deadline_exceeded', ended_at = now(), updated_at = now(),
        error_detail = 'No agent took the task before its deadline.'
      where state = 'queued' and deadline_at < now()
      returning user_message_id, kind
    ), marked as (
      update chat.messages m set unanswered = true from expired
      where m.id = expired.user_message_id and expired.kind = 'send'
    )
    select count(*) as expired from expired
"""
# Each of the four reads a partial index that holds nothing else.
DEPTHS: Final = """
    select
      (select count(*) from chat.tasks where state = 'queued') as queued,
      (select count(*) from chat.tasks where state = 'running') as running,
      (select count(*) from chat.tasks where ended_at is not null and settled_at is null) as unsettled,
      (select coalesce(extract(epoch from now() - min(created_at)), 0)::float8 from chat.tasks
       where state = 'queued') as oldest_queued_seconds
    """
UNSETTLED: Final = """
    select * from chat.tasks
    where ended_at < now() - cast(%(age)s as interval) and settled_at is null order by ended_at limit %(limit)s
    """
SETTLED: Final = """
    update chat.tasks t set settled_at = now(), held_nano = 0, charged_nano = paid.charged
    from unnest(cast(%(tasks)s as uuid[]), cast(%(charged)s as bigint[])) as paid (id, charged)
    where t.id = paid.id and t.settled_at is null
    """
PURGE_KEYS: Final = "delete from chat.idempotency_keys where created_at < now() - cast(%(life)s as interval)"
PURGE_SESSIONS: Final = """
    delete from chat.sessions where id in (
      select s.id from chat.sessions s
      where s.deleted_at is not null
        and not exists (select 1 from chat.tasks t where t.session_id = s.id and t.settled_at is null)
      limit %(limit)s)
    """


@dataclass(frozen=True, slots=True)
class Depths:
    """Tasks by what is to be done with them, and how long the oldest queued one waits, in seconds."""

    queued: int
    running: int
    unsettled: int
    oldest_queued_seconds: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """An ended task and what it owes: usage to pay for, or None to give the hold back."""

    task: Task
    usage: Usage | None


def settlement_of(task: Task) -> Settlement:
    """Completed pays its usage; cancelled and out of credits pay what was used, if anything; failed pays nothing."""
    unused = task.usage is None or (task.usage.input_tokens == 0 and task.usage.output_tokens == 0)
    unpaid = unused and task.state is not TaskState.COMPLETED
    return Settlement(task, None if unpaid else task.usage)


class UpkeepStore:
    """The reaper's and the settler's statements; not scoped by a caller, since no user asks for them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _fetch(self, statement: LiteralString, parameters: Mapping[str, Any] = NO_PARAMETERS) -> list[DictRow]:
        return await self._database.fetch(statement, parameters, seconds=CHORE_SECONDS)

    async def abandon_stale(self, age: timedelta) -> None:
        """Give up turns that were admitted and never accepted."""
        await self._fetch(ABANDON_STALE, {"age": age})

    async def abandoned(self, limit: int) -> Sequence[TaskId]:
        """Turns given up, whose holds are to be released."""
        return _ids(await self._fetch(ABANDONED, {"limit": limit}))

    async def remove(self, task_ids: Sequence[TaskId]) -> None:
        """Remove turns given up, once their holds are released, and the keys that name them."""
        await self._fetch(REMOVE, {"tasks": list(task_ids)})

    async def requeue_expired(self, limit: int) -> Sequence[Waiting]:
        """Queue tasks again whose lease expired."""
        return _waiting(await self._fetch(REQUEUE, {"most": MAX_FAILURES, "limit": limit}))

    async def poisoned(self, limit: int) -> Sequence[tuple[TaskId, int]]:
        """Tasks whose lease expired for the last time, with their attempts."""
        rows = await self._fetch(POISONED, {"most": MAX_FAILURES, "limit": limit})
        return [(TaskId(row["id"]), row["attempt"]) for row in rows]

    async def unclaimed(self, age: timedelta, limit: int) -> Sequence[Waiting]:
        """Queued tasks to announce again; each is handed out once per `age`."""
        return _waiting(await self._fetch(UNCLAIMED, {"age": age, "limit": limit}))

    async def fail_expired_queued(self) -> None:
        """End tasks that no agent took before their deadline."""
        (row,) = await self._fetch(EXPIRED_QUEUED)
        TASKS_ENDED.labels(TaskState.FAILED, "deadline_exceeded").inc(row["expired"])

    async def depths(self) -> Depths:
        """How much there is to do."""
        (row,) = await self._fetch(DEPTHS)
        return Depths(**row)

    async def unsettled(self, age: timedelta, limit: int) -> Sequence[Settlement]:
        """Ended tasks whose settlement has not been seen to."""
        rows = await self._fetch(UNSETTLED, {"age": age, "limit": limit})
        return [settlement_of(to_task(row, await answer_of(self._database, row))) for row in rows]

    async def purge_keys(self) -> None:
        """Forget idempotency keys past their life."""
        await self._fetch(PURGE_KEYS, {"life": IDEMPOTENCY_KEY_LIFE})

    async def purge_deleted_sessions(self, limit: int) -> None:
        """Remove buried sessions and all in them, once their tasks are settled."""
        await self._fetch(PURGE_SESSIONS, {"limit": limit})

    async def mark_settled(self, charged: Sequence[tuple[UUID, int]]) -> None:
        """Note what billing has charged for each task."""
        await self._fetch(SETTLED, {"tasks": [task for task, _ in charged], "charged": [nano for _, nano in charged]})


def _ids(rows: Sequence[Mapping[str, Any]]) -> Sequence[TaskId]:
    return [TaskId(row["id"]) for row in rows]


def _waiting(rows: Sequence[Mapping[str, Any]]) -> Sequence[Waiting]:
    return [Waiting(TaskId(row["id"]), row["traceparent"]) for row in rows]
