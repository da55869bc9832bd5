"""What the reaper reads and repairs: every crash leaves a row that says what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.chat.domain import IDEMPOTENCY_KEY_LIFE, MAX_FAILURES, Task, TaskId, TaskState, Usage
from services.chat.store.rows import to_task
from services.chat.store.turns import REMOVE, answer_of
from services.kit.db import autocommit

ABANDON_STALE = text(
    """
    update chat.tasks set state = 'abandoned', updated_at = now()
    where state = 'admitted' and created_at < now() - cast(:age as interval)
    """
)
# An idempotency key of a turn that was given up must not answer for it.
FORGET_ABANDONED_KEYS = text(
    """
    delete from chat.idempotency_keys k using chat.tasks t
    where t.id = any(:tasks) and k.resource_id = t.id
      and k.user_id = t.user_id and k.route = t.kind || ':' || t.session_id
    """
)
ABANDONED = text("select id from chat.tasks where state = 'abandoned' limit :limit")

# Another replica's reaper skips the rows this one has locked; whoever comes second finds them changed.
REQUEUE = text(
    """
    update chat.tasks t set failures = t.failures + 1, state = 'queued', lease_until = null, worker = null,
      published_at = now(), updated_at = now()
    where t.id = any (array(
      select id from chat.tasks
      where state = 'running' and lease_until < now() and failures + 1 < :most and cancel_requested_at is null
      limit :limit for update skip locked))
    returning t.id
    """
)
POISONED = text(
    """
    select id, attempt from chat.tasks
    where state = 'running' and lease_until < now() and failures + 1 >= :most and cancel_requested_at is null
    limit :limit
    """
)
# Queued for longer than a hint takes and not announced since: to be announced again.
UNCLAIMED = text(
    """
    update chat.tasks set published_at = now()
    where id = any (array(
      select id from chat.tasks
      where state = 'queued' and (published_at is null or published_at < now() - cast(:age as interval))
      order by created_at limit :limit for update skip locked))
    returning id
    """
)
EXPIRED_QUEUED = text(
    """
    update chat.tasks set state = 'failed', error_code = 'deadline_exceeded', ended_at = now(), updated_at = now(),
      error_detail = 'No agent took the task before its deadline.'
    where state = 'queued' and deadline_at < now()
    returning id, user_message_id, kind
    """
)
UNSETTLED = text(
    """
    select * from chat.tasks
    where ended_at < now() - cast(:age as interval) and settled_at is null order by ended_at limit :limit
    """
)
SETTLED = text(
    """
    update chat.tasks t set settled_at = now(), held_nano = 0, charged_nano = paid.charged
    from unnest(cast(:tasks as uuid[]), cast(:charged as bigint[])) as paid (id, charged)
    where t.id = paid.id and t.settled_at is null
    """
)
PURGE_KEYS = text("delete from chat.idempotency_keys where created_at < now() - cast(:life as interval)")
PURGE_SESSIONS = text(
    """
    delete from chat.sessions where id in (
      select s.id from chat.sessions s
      where s.deleted_at is not null
        and not exists (select 1 from chat.tasks t where t.session_id = s.id and t.settled_at is null)
      limit :limit)
    """
)
MARK_UNANSWERED = text("update chat.messages set unanswered = true where id = any(:messages)")


@dataclass(frozen=True, slots=True)
class Settlement:
    """An ended task and what it owes: usage to pay for, or None to give the hold back."""

    task: Task
    usage: Usage | None


def settlement_of(task: Task) -> Settlement:
    """Completed pays its usage; cancelled pays what was used, if anything was; failed pays nothing."""
    unused = task.usage is None or (task.usage.input_tokens == 0 and task.usage.output_tokens == 0)
    unpaid = task.state is TaskState.FAILED or (task.state is TaskState.CANCELLED and unused)
    return Settlement(task, None if unpaid else task.usage)


class UpkeepStore:
    """The reaper's and the settler's statements; not scoped by a caller, since no user asks for them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._autocommit = autocommit(engine)

    async def abandon_stale(self, age: timedelta) -> int:
        """Give up turns that were admitted and never accepted; how many."""
        async with self._autocommit.connect() as connection:
            return (await connection.execute(ABANDON_STALE, {"age": age})).rowcount

    async def abandoned(self, limit: int) -> Sequence[UUID]:
        """Turns given up, whose holds are to be released."""
        async with self._autocommit.connect() as connection:
            return (await connection.execute(ABANDONED, {"limit": limit})).scalars().all()

    async def remove(self, task_ids: Sequence[UUID]) -> None:
        """Remove turns given up, once their holds are released, and the keys that name them."""
        async with self._engine.begin() as connection:
            await connection.execute(FORGET_ABANDONED_KEYS, {"tasks": list(task_ids)})
            await connection.execute(REMOVE, {"tasks": list(task_ids)})

    async def requeue_expired(self, limit: int) -> Sequence[UUID]:
        """Queue tasks again whose lease expired."""
        async with self._autocommit.connect() as connection:
            return (await connection.execute(REQUEUE, {"most": MAX_FAILURES, "limit": limit})).scalars().all()

    async def poisoned(self, limit: int) -> Sequence[tuple[TaskId, int]]:
        """Tasks whose lease expired for the last time, with their attempts."""
        async with self._autocommit.connect() as connection:
            rows = await connection.execute(POISONED, {"most": MAX_FAILURES, "limit": limit})
            return [(TaskId(row.id), row.attempt) for row in rows]

    async def unclaimed(self, age: timedelta, limit: int) -> Sequence[UUID]:
        """Queued tasks to announce again; each is handed out once per `age`."""
        async with self._autocommit.connect() as connection:
            return (await connection.execute(UNCLAIMED, {"age": age, "limit": limit})).scalars().all()

    async def fail_expired_queued(self) -> int:
        """End tasks that no agent took before their deadline; how many."""
        async with self._engine.begin() as connection:
            rows = (await connection.execute(EXPIRED_QUEUED)).all()
            unanswered = [row.user_message_id for row in rows if row.kind == "send"]
            if unanswered:
                await connection.execute(MARK_UNANSWERED, {"messages": unanswered})
        return len(rows)

    async def unsettled(self, age: timedelta, limit: int) -> Sequence[Settlement]:
        """Ended tasks whose settlement has not been seen to."""
        async with self._autocommit.connect() as connection:
            rows = (await connection.execute(UNSETTLED, {"age": age, "limit": limit})).all()
            return [settlement_of(to_task(row, await answer_of(connection, row))) for row in rows]

    async def purge_keys(self) -> None:
        """Forget idempotency keys past their life."""
        async with self._autocommit.connect() as connection:
            await connection.execute(PURGE_KEYS, {"life": IDEMPOTENCY_KEY_LIFE})

    async def purge_deleted_sessions(self, limit: int) -> int:
        """Remove buried sessions and all in them, once their tasks are settled; how many."""
        async with self._autocommit.connect() as connection:
            return (await connection.execute(PURGE_SESSIONS, {"limit": limit})).rowcount

    async def mark_settled(self, charged: Sequence[tuple[UUID, int]]) -> None:
        """Note what billing has charged for each task."""
        parameters = {"tasks": [task for task, _ in charged], "charged": [nano for _, nano in charged]}
        async with self._autocommit.connect() as connection:
            await connection.execute(SETTLED, parameters)
