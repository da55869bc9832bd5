"""A turn as users drive it: admit, accept or withdraw, read, cancel. Each race is decided in one statement."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import bindparam, exists, select
from sqlalchemy.ext.asyncio import AsyncEngine

from services.chat.domain import (
    Admission,
    Hold,
    Message,
    MessageId,
    Permission,
    SessionId,
    Task,
    TaskId,
    TaskState,
    TurnKind,
)
from services.chat.errors import NothingToRegenerate, SessionNotActive, TaskInProgress
from services.chat.metrics import TASKS_ENDED
from services.chat.store import idempotency
from services.chat.store.rows import Fields, to_message, to_task
from services.chat.store.tables import messages, sessions, tasks
from services.chat.store.visibility import caller_parameters, is_visible, permission, visible_from
from services.kit import telemetry
from services.kit.callers import Caller
from services.kit.errors import InvalidArgument, NotFound, PermissionDenied
from services.kit.postgres.engine import autocommit
from services.kit.postgres.pool import Database

# The race of two sends: both insert, the second meets the run slot's unique index and inserts nothing. Neither does one
# with a task id that is taken, in whatever workspace: it meets the primary key. What the caller may do is part of the
# same statement, so nothing can change between the check and the admission.
ADMIT: Final = """
    insert into chat.tasks
      (id, session_id, workspace_id, user_id, kind, state, settings, deadline_at, user_message_id, traceparent)
    select %(task)s, s.id, s.workspace_id, %(user)s, %(kind)s, 'admitted',
      to_jsonb(s) - array['last_sequence', 'message_count', 'shareable_link_id', 'created_at', 'updated_at'],
      now() + make_interval(secs => %(deadline)s), again.id, %(traceparent)s
    from chat.sessions s
    left join lateral (
      select m.id from chat.messages m
      where %(kind)s = 'regenerate' and m.session_id = s.id and m.role = 'user'
      order by m.sequence_number desc limit 1) again on true
    left join chat.shares h on h.session_id = s.id and h.user_id = %(user)s
    where s.id = %(session)s and s.workspace_id = %(workspace)s and s.deleted_at is null and s.status = 'active'
      and %(may_write)s and ((s.user_id = %(user)s and %(member)s) or h.permission = 'write')
      and (%(kind)s = 'send' or again.id is not null)
    on conflict do nothing
    returning settings ->> 'ai_provider' as provider, settings ->> 'ai_model' as model,
      (settings ->> 'max_tokens')::bigint as max_tokens,
      coalesce(octet_length(settings ->> 'system_prompt'), 0) as system_prompt_bytes,
      (select coalesce(sum(octet_length(recent.content)), 0)::bigint from (
         select m.content from chat.messages m
         where m.session_id = %(session)s and not m.unanswered
         order by m.sequence_number desc limit %(history)s) recent) as history_bytes
    """

REFUSAL = (
    select(
        sessions.c.status,
        permission.label("permission"),
        select(tasks.c.id)
        .where(tasks.c.session_id == sessions.c.id, tasks.c.state.in_(("admitted", "queued", "running")))
        .scalar_subquery()
        .label("active_task_id"),
        exists().where(messages.c.session_id == sessions.c.id, messages.c.role == "user").label("has_user_message"),
    )
    .select_from(visible_from)
    .where(is_visible, sessions.c.id == bindparam("session"))
)

ADMISSION_REFUSAL = REFUSAL.add_columns(exists().where(tasks.c.id == bindparam("task")).label("is_task_known"))

# Session first, then task: every statement that ends a turn locks in this order. Both conditions are checked again on
# the locked rows, so a reaper that gave the turn up or a delete that buried the session meanwhile makes this a no-op.
ACCEPT: Final = """
    with turn as (
      select s.id as session_id, t.id as task_id from chat.sessions s join chat.tasks t on t.session_id = s.id
      where t.id = %(task)s and t.state = 'admitted' and s.deleted_at is null
      for update of s, t
    ), session as (
      update chat.sessions s set last_sequence = s.last_sequence + 1, message_count = s.message_count + 1,
        updated_at = now()
      from turn where s.id = turn.session_id
      returning s.id, s.last_sequence
    ), task as (
      update chat.tasks t set state = 'queued', user_message_id = %(message)s, held_nano = %(held)s, tiers = %(tiers)s,
        output_tokens_held = %(output_tokens)s, updated_at = now(), published_at = now()
      from turn where t.id = turn.task_id
      returning t.id, t.user_id, t.created_at, t.updated_at
    )
    insert into chat.messages (id, session_id, task_id, sequence_number, role, content, user_id)
    select %(message)s, session.id, task.id, session.last_sequence, 'user', %(content)s, task.user_id from session, task
    returning sequence_number, created_at as accepted_at, (select created_at from task) as created_at
    """

# The message to answer again must still be there: whoever deletes it locks the session first and finds the run slot
# free only before this turn was admitted.
ACCEPT_AGAIN: Final = """
    with turn as (
      select s.id as session_id, t.id as task_id, t.user_message_id
      from chat.sessions s join chat.tasks t on t.session_id = s.id
      where t.id = %(task)s and t.state = 'admitted' and s.deleted_at is null
        and exists (select 1 from chat.messages m where m.id = t.user_message_id)
      for update of s, t
    ), session as (
      update chat.sessions s set updated_at = now() from turn where s.id = turn.session_id
    ), task as (
      update chat.tasks t set state = 'queued', held_nano = %(held)s, tiers = %(tiers)s,
        output_tokens_held = %(output_tokens)s, updated_at = now(), published_at = now()
      from turn where t.id = turn.task_id
      returning t.created_at as task_created_at, t.user_message_id
    )
    select m.*, task.task_created_at from task join chat.messages m on m.id = task.user_message_id
    """

# A turn that is given up or refused frees its slot and its idempotency key in one go.
ABANDON: Final = """
    with forgotten as (
      delete from chat.idempotency_keys
      where resource_id = %(task)s and user_id = %(user)s and route = %(route)s
    )
    update chat.tasks set state = 'abandoned', updated_at = now() where id = %(task)s and state = 'admitted'
"""
WITHDRAW: Final = """
    with forgotten as (
      delete from chat.idempotency_keys
      where resource_id = %(task)s and user_id = %(user)s and route = %(route)s
    )
    delete from chat.tasks where id = %(task)s and state = 'admitted'
"""

TASK = (
    select(tasks)
    .join(sessions, sessions.c.id == tasks.c.session_id)
    .where(
        tasks.c.id == bindparam("task"),
        tasks.c.session_id == bindparam("session"),
        select(sessions.c.id.label("visible"))
        .select_from(visible_from)
        .where(is_visible, sessions.c.id == bindparam("session"))
        .exists(),
    )
)
ANSWER: Final = """
    select * from chat.messages
    where parent_message_id = %(user_message)s and task_id = %(task)s
    order by sequence_number
"""
MESSAGE: Final = "select * from chat.messages where id = %(message)s"

# A queued task ends here and now, free; a running one is marked and its agent told. Only a writer's call does either.
CANCEL: Final = """
    with cancelled as (
      update chat.tasks t set
        state = case t.state when 'queued' then 'cancelled' else t.state end,
        ended_at = case t.state when 'queued' then now() end,
        input_tokens = case t.state when 'queued' then 0 else t.input_tokens end,
        output_tokens = case t.state when 'queued' then 0 else t.output_tokens end,
        cancel_requested_at = coalesce(t.cancel_requested_at, now()),
        updated_at = now()
      from chat.sessions s left join chat.shares h on h.session_id = s.id and h.user_id = %(user)s
      where t.id = %(task)s and t.state in ('queued', 'running') and t.session_id = s.id and s.id = %(session)s
        and s.workspace_id = %(workspace)s and s.deleted_at is null
        and %(may_write)s and ((s.user_id = %(user)s and %(member)s) or h.permission = 'write')
      returning t.*
    ), marked as (
      update chat.messages m set unanswered = true from cancelled
      where m.id = cancelled.user_message_id and cancelled.state = 'cancelled' and cancelled.kind = 'send'
    )
    select * from cancelled
    """


class TurnStore:
    """The users' side of the saga in `chat.tasks`."""

    def __init__(self, engine: AsyncEngine, database: Database) -> None:
        self._engine, self._database = engine, database
        self._autocommit = autocommit(engine)

    async def admit(
        self,
        caller: Caller,
        session_id: SessionId,
        task_id: TaskId,
        *,
        kind: TurnKind,
        content_bytes: int,
        deadline_seconds: float,
        history: int,
        key: idempotency.Key | None,
    ) -> Admission | TaskId:
        """Take the session's run slot; the earlier task's id when the idempotency key names one."""
        parameters = {
            **caller_parameters(caller),
            "session": session_id,
            "task": task_id,
            "kind": kind,
            "may_write": caller.may_write,
            "deadline": deadline_seconds,
            "history": history,
            "traceparent": telemetry.traceparent() or None,
        }
        if key is not None:
            twin, row = await self._admit_with_key(key, task_id, parameters)
            if twin is not None:
                return TaskId(twin)
        else:
            row = next(iter(await self._database.fetch(ADMIT, parameters)), None)
        if row is None:
            await self._explain_refusal(caller, session_id, task_id, kind)
        return Admission(
            task_id=task_id,
            session_id=session_id,
            provider=row["provider"],
            model=row["model"],
            system_prompt_bytes=row["system_prompt_bytes"],
            history_bytes=row["history_bytes"],
            content_bytes=content_bytes,
            max_tokens=row["max_tokens"],
        )

    async def _admit_with_key(
        self, key: idempotency.Key, task_id: TaskId, parameters: Mapping[str, Any]
    ) -> tuple[UUID | None, Fields | None]:
        """Bind the key and admit in one transaction: a refused admission leaves the key free."""
        async with self._engine.begin() as connection:
            twin = await idempotency.claim(connection, key, task_id)
            if twin is not None:
                return twin, None
            row = (await connection.exec_driver_sql(ADMIT, dict(parameters))).mappings().one_or_none()
            if row is None:
                await connection.rollback()
            return None, row

    async def _explain_refusal(
        self, caller: Caller, session_id: SessionId, task_id: TaskId, kind: TurnKind
    ) -> NoReturn:
        """Raise why an admission inserted nothing."""
        parameters = {**caller_parameters(caller), "session": session_id, "task": task_id}
        async with self._autocommit.connect() as connection:
            found = (await connection.execute(ADMISSION_REFUSAL, parameters)).one_or_none()
        if found is None:
            raise NotFound
        if found.permission == Permission.READ or not caller.may_write:
            raise PermissionDenied
        if found.status != "active":
            raise SessionNotActive(f"The session is {found.status}; only an active one can send.", status=found.status)
        if found.active_task_id is not None:
            raise TaskInProgress(task_id=str(found.active_task_id))
        if kind is TurnKind.REGENERATE and not found.has_user_message:
            raise NothingToRegenerate
        if found.is_task_known:  # nothing of the other task is told, not even whose it is
            raise InvalidArgument("task_id must be a new UUID: there is a task of this id.", field="task_id")
        raise TaskInProgress("The session was answering another message until now; try again.")

    async def accept(
        self, caller: Caller, admission: Admission, message_id: MessageId, content: str, hold: Hold
    ) -> tuple[Task, Message]:
        """Store the message and queue the task. NotFound when the turn was given up or its session deleted."""
        parameters = {
            "task": admission.task_id,
            "message": message_id,
            "content": content,
            **_hold_parameters(hold),
        }
        rows = await self._database.fetch(ACCEPT, parameters)
        if not rows:
            raise NotFound
        (row,) = rows
        message = Message(
            id=message_id,
            session_id=admission.session_id,
            sequence_number=row["sequence_number"],
            role="user",
            content=content,
            user_id=caller.user_id,
            created_at=row["accepted_at"],
        )
        return _queued(admission, message, row["created_at"], hold), message

    async def accept_again(self, admission: Admission, hold: Hold) -> tuple[Task, Message]:
        """Queue the task that answers the last user message again. NothingToRegenerate when that is gone."""
        parameters = {"task": admission.task_id, **_hold_parameters(hold)}
        rows = await self._database.fetch(ACCEPT_AGAIN, parameters)
        if not rows:
            raise NothingToRegenerate
        (row,) = rows
        message = to_message(row)
        return _queued(admission, message, row["task_created_at"], hold), message

    async def abandon(self, task_id: TaskId, key: idempotency.Key | None) -> None:
        """Give an admitted turn up: its slot and key are free at once, the reaper sees to its hold."""
        await self._database.fetch(ABANDON, _key_parameters(task_id, key))

    async def withdraw(self, task_id: TaskId, key: idempotency.Key | None) -> None:
        """Remove an admitted turn that was refused its credits: nothing is held for it."""
        await self._database.fetch(WITHDRAW, _key_parameters(task_id, key))

    async def get(self, caller: Caller, session_id: SessionId, task_id: TaskId) -> Task:
        """A task of a session the caller can see, with its answer once it has one."""
        parameters = {**caller_parameters(caller), "session": session_id, "task": task_id}
        async with self._autocommit.connect() as connection:
            row = (await connection.execute(TASK, parameters)).mappings().one_or_none()
        if row is None or row["state"] == TaskState.ABANDONED:
            raise NotFound
        return to_task(row, await answer_of(self._database, row))

    async def user_message(self, message_id: MessageId) -> Message | None:
        """The message a task answers; None when it was deleted."""
        rows = await self._database.fetch(MESSAGE, {"message": message_id})
        return to_message(rows[0]) if rows else None

    async def may_write(self, caller: Caller, session_id: SessionId) -> bool:
        """Whether the caller may send to a session it can see, and so cancel. NotFound when it can't see it."""
        parameters = {**caller_parameters(caller), "session": session_id}
        async with self._autocommit.connect() as connection:
            found = (await connection.execute(REFUSAL, parameters)).one_or_none()
        if found is None:
            raise NotFound
        return caller.may_write and found.permission != Permission.READ

    async def request_cancel(self, caller: Caller, session_id: SessionId, task_id: TaskId) -> Task | None:
        """End a queued task, mark a running one; None when it had ended before or the caller may not write."""
        parameters = {
            **caller_parameters(caller),
            "session": session_id,
            "task": task_id,
            "may_write": caller.may_write,
        }
        rows = await self._database.fetch(CANCEL, parameters)
        if not rows:
            return None
        task = to_task(rows[0])
        if task.state.ended:
            TASKS_ENDED.labels(task.state, "").inc()
        return task


def _queued(admission: Admission, message: Message, created_at: datetime, hold: Hold) -> Task:
    return Task(
        id=admission.task_id,
        session_id=admission.session_id,
        state=TaskState.QUEUED,
        attempt=0,
        created_at=created_at,
        updated_at=message.created_at,
        user_message_id=message.id,
        usage=None,
        held_nano=hold.held_nano,
        charged_nano=0,
        error_code=None,
        error_detail=None,
    )


async def answer_of(database: Database, row: Fields) -> Sequence[Message]:
    """The messages a task's row has stored."""
    if row["state"] not in (TaskState.COMPLETED, TaskState.CANCELLED) or row["user_message_id"] is None:
        return ()
    found = await database.fetch(ANSWER, {"user_message": row["user_message_id"], "task": row["id"]})
    return [to_message(message) for message in found]


def _key_parameters(task_id: TaskId, key: idempotency.Key | None) -> dict[str, Any]:
    return {"task": task_id, "user": key.user_id if key else None, "route": key.route if key else None}


def _hold_parameters(hold: Hold) -> dict[str, Any]:
    """What a hold adds to a task's row."""
    tiers = [
        [tier.up_to_input_tokens, tier.input_nano_per_million, tier.output_nano_per_million] for tier in hold.tiers
    ]
    return {"held": hold.held_nano, "tiers": Jsonb(tiers), "output_tokens": hold.output_tokens}
