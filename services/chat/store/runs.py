"""A run as agents drive it: claim, heartbeat, step, end. `attempt` fences every statement."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from services.chat.domain import (
    CANCEL_GRACE,
    LEASE,
    Claim,
    Ending,
    HistoryMessage,
    Message,
    MessageId,
    SessionId,
    Step,
    Task,
    TaskId,
    TaskState,
    Usage,
)
from services.chat.errors import LeaseLost
from services.chat.metrics import TASKS_ENDED
from services.chat.store.rows import to_hold, to_settings, to_steps, to_task
from services.kit.ids import new_id
from services.kit.postgres.pool import Database
from services.kit.text import storable

# Workers race for the queue: each locks other rows, nobody waits. The array makes Postgres pick the rows once.
CLAIM: Final = """
    update chat.tasks t set state = 'running', attempt = t.attempt + 1, worker = %(worker)s,
      lease_until = now() + cast(%(lease)s as interval), updated_at = now(), text_so_far = ''
    where t.id = any (array(
      select id from chat.tasks where state = 'queued' order by created_at limit %(limit)s for update skip locked))
    returning t.*
    """

# The newest messages of each claimed task's session up to the message to answer, as many as fit `bytes`; the turns that
# nobody answered are left out.
HISTORY: Final = """
    select wanted.task_id, recent.role, recent.content, recent.tool_calls, recent.tool_call_id
    from unnest(
      cast(%(tasks)s as uuid[]), cast(%(sessions)s as uuid[]), cast(%(messages)s as uuid[]),
      cast(%(bytes)s as bigint[])) as wanted (task_id, session_id, message_id, bytes),
    lateral (
      select *, sum(octet_length(content)) over (order by sequence_number desc) as total from (
        select m.id, m.sequence_number, m.role, m.content, m.tool_calls, m.tool_call_id from chat.messages m
        where m.session_id = wanted.session_id and (not m.unanswered or m.id = wanted.message_id)
          and m.sequence_number <= (select sequence_number from chat.messages where id = wanted.message_id)
        order by m.sequence_number desc limit %(limit)s) newest
    ) recent
    where recent.total <= wanted.bytes or recent.id = wanted.message_id
    order by wanted.task_id, recent.sequence_number
    """

HEARTBEAT: Final = """
    update chat.tasks t set lease_until = now() + cast(%(lease)s as interval), text_so_far = beat.text,
      input_tokens = beat.input_tokens, output_tokens = beat.output_tokens, estimated = beat.estimated
    from jsonb_to_recordset(%(beats)s)
      as beat (id uuid, attempt int, text text, input_tokens bigint, output_tokens bigint, estimated boolean)
    where t.id = beat.id and t.attempt = beat.attempt and t.state = 'running'
    returning t.id, t.cancel_requested_at is not null as cancelled
    """

RECORD_STEP: Final = """
    update chat.tasks set
      steps = case when jsonb_array_length(steps) < %(number)s then steps || cast(%(step)s as jsonb) else steps end
    where id = %(task)s and attempt = %(attempt)s and state = 'running'
    returning id
    """

# The first committed end wins: a later one, and one of an older attempt, finds no row. The answer is what the kept
# steps and the end itself bring. A regenerated answer replaces the old one here, so a failed run leaves it; a message
# that got no answer is marked; a buried session stores nothing. Session first, then task, as everywhere.
END: Final = """
    with turn as (
      select s.id as session_id, t.id as task_id, t.user_message_id, t.kind, t.settings,
        case when s.deleted_at is null and %(answers)s
          then jsonb_path_query_array(t.steps, '$[*].messages[*]') || %(messages)s else '[]' end as documents
      from chat.sessions s join chat.tasks t on t.session_id = s.id
      where t.id = %(task)s and t.attempt = %(attempt)s and t.state = 'running'
      for update of s, t
    ), answer as (
      select turn.task_id, turn.session_id, turn.user_message_id, turn.settings, document.*
      from turn, rows from (jsonb_to_recordset(turn.documents) as (
        id uuid, role text, content text, tool_calls jsonb, tool_call_id text, finish_reason text,
        input_tokens bigint, output_tokens bigint)) with ordinality as document
    ), size as (
      select count(*) as messages from answer
    ), parent as (
      update chat.messages m set unanswered = (size.messages = 0) from turn, size
      where m.id = turn.user_message_id and (size.messages > 0 or turn.kind = 'send')
    ), removed as (
      delete from chat.messages m using turn, size
      where turn.kind = 'regenerate' and size.messages > 0 and m.parent_message_id = turn.user_message_id
      returning m.id
    ), session as (
      update chat.sessions s set last_sequence = s.last_sequence + size.messages,
        message_count = s.message_count + size.messages - (select count(*) from removed), updated_at = now()
      from turn, size where s.id = turn.session_id
      returning s.last_sequence - size.messages as base
    ), stored as (
      insert into chat.messages (id, session_id, task_id, parent_message_id, sequence_number, role, content, tool_calls,
        tool_call_id, ai_provider, ai_model, finish_reason, input_tokens, output_tokens)
      select answer.id, answer.session_id, answer.task_id, answer.user_message_id, session.base + answer.ordinality,
        answer.role, answer.content, answer.tool_calls, answer.tool_call_id, answer.settings ->> 'ai_provider',
        answer.settings ->> 'ai_model', answer.finish_reason, answer.input_tokens, answer.output_tokens
      from session, answer
      returning *
    ), task as (
      update chat.tasks t set state = %(state)s, input_tokens = %(input_tokens)s, output_tokens = %(output_tokens)s,
        estimated = %(estimated)s, error_code = %(error_code)s, error_detail = %(error_detail)s,
        last_event = %(last_event)s, ended_at = now(), updated_at = now(), lease_until = null, text_so_far = '',
        steps = '[]', warnings = %(warnings)s
      from turn where t.id = turn.task_id
      returning t.*
    )
    select task.*, (select jsonb_agg(stored order by stored.sequence_number) from stored) as answer from task
    """

EXPIRED_CANCELS: Final = """
    select id, attempt, text_so_far, input_tokens, output_tokens, estimated from chat.tasks
    where state = 'running' and cancel_requested_at < now() - cast(%(grace)s as interval)
      and (cast(%(task)s as uuid) is null or id = %(task)s)
    limit %(limit)s
    """
OVERDUE: Final = """
    select id, attempt from chat.tasks where state = 'running' and deadline_at < now() limit %(limit)s
    """


@dataclass(frozen=True, slots=True)
class Beat:
    """One run's sign of life: the answer and usage so far."""

    task_id: TaskId
    attempt: int
    text: str
    usage: Usage


class RunStore:
    """The agents' side of the saga in `chat.tasks`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, worker: str, limit: int) -> Sequence[Claim]:
        """Lease the queued tasks that wait longest."""
        rows = await self._database.fetch(CLAIM, {"worker": storable(worker), "limit": limit, "lease": LEASE})
        return [_to_claim(row) for row in rows]

    async def histories(
        self, claims: Sequence[Claim], window_bytes: Sequence[int], *, limit: int
    ) -> Mapping[TaskId, Sequence[HistoryMessage]]:
        """The conversation of each claimed task, oldest first, ending with the message to answer."""
        parameters = {
            "tasks": [claim.task_id for claim in claims],
            "sessions": [claim.session_id for claim in claims],
            "messages": [claim.user_message_id for claim in claims],
            "bytes": list(window_bytes),
            "limit": limit,
        }
        found: dict[TaskId, list[HistoryMessage]] = {claim.task_id: [] for claim in claims}
        for row in await self._database.fetch(HISTORY, parameters):
            task_id = row.pop("task_id")
            found[task_id].append(HistoryMessage(**row))
        return found

    async def heartbeat(self, beats: Sequence[Beat]) -> Mapping[TaskId, bool]:
        """Renew leases; the tasks that are still theirs, each with whether its end was asked for."""
        documents = [
            {"id": str(beat.task_id), "attempt": beat.attempt, "text": storable(beat.text), **asdict(beat.usage)}
            for beat in beats
        ]
        rows = await self._database.fetch(HEARTBEAT, {"beats": Jsonb(documents), "lease": LEASE})
        return {TaskId(row["id"]): row["cancelled"] for row in rows}

    async def record_step(self, task_id: TaskId, attempt: int, step: Step) -> None:
        """Keep a step; a number that is kept already changes nothing."""
        document = {
            "number": step.number,
            "messages": [{"id": str(new_id()), **storable(asdict(message))} for message in step.messages],
            "usage": asdict(step.usage),
        }
        parameters = {"task": task_id, "attempt": attempt, "number": step.number, "step": Jsonb([document])}
        if not await self._database.fetch(RECORD_STEP, parameters):
            raise LeaseLost

    async def end(self, task_id: TaskId, attempt: int, ending: Ending, *, last_event: int = 0) -> Task:
        """End a task with what the ending and its kept steps bring. LeaseLost unless `attempt` still runs it."""
        answers = ending.state is not TaskState.FAILED
        answer = [_answer_document(ending)] if answers and (ending.content or not _partial(ending)) else []
        parameters = {
            "task": task_id,
            "attempt": attempt,
            "state": ending.state,
            "answers": answers,
            "messages": Jsonb(answer),
            "error_code": storable(ending.error_code),
            "error_detail": storable(ending.error_detail),
            "warnings": Jsonb([asdict(warning) for warning in ending.warnings]),
            "last_event": last_event,
            **asdict(ending.usage),
        }
        rows = await self._database.fetch(END, parameters)
        if not rows:
            raise LeaseLost
        (row,) = rows
        TASKS_ENDED.labels(ending.state, row["error_code"] or "").inc()
        return to_task(row, [_stored_message(document, row["ended_at"]) for document in row["answer"] or ()])

    async def overdue_cancels(self, limit: int, task_id: TaskId | None = None) -> Sequence[tuple[TaskId, int, Ending]]:
        """Running tasks that were asked to stop and did not in time, with the end their last heartbeat allows."""
        rows = await self._database.fetch(EXPIRED_CANCELS, {"grace": CANCEL_GRACE, "task": task_id, "limit": limit})
        return [(TaskId(row["id"]), row["attempt"], _cancelled_so_far(row)) for row in rows]

    async def overdue(self, limit: int) -> Sequence[tuple[TaskId, int]]:
        """Running tasks past their deadline, with their attempts."""
        rows = await self._database.fetch(OVERDUE, {"limit": limit})
        return [(TaskId(row["id"]), row["attempt"]) for row in rows]


def _partial(ending: Ending) -> bool:
    return ending.state is TaskState.CANCELLED


def _cancelled_so_far(row: Mapping[str, Any]) -> Ending:
    usage = Usage(row["input_tokens"], row["output_tokens"], row["estimated"])
    return Ending(TaskState.CANCELLED, content=row["text_so_far"], finish_reason="cancelled", usage=usage)


def _to_claim(row: Mapping[str, Any]) -> Claim:
    return Claim(
        task_id=TaskId(row["id"]),
        session_id=SessionId(row["session_id"]),
        attempt=row["attempt"],
        settings=to_settings(row["settings"]),
        user_message_id=MessageId(row["user_message_id"]),
        steps=to_steps(row["steps"]),
        hold=to_hold(row),
        created_at=row["created_at"],
        deadline_at=row["deadline_at"],
        traceparent=row["traceparent"] or "",
    )


def _answer_document(ending: Ending) -> dict[str, Any]:
    return {
        "id": str(new_id()),
        "role": "assistant",
        "content": storable(ending.content),
        "finish_reason": storable(ending.finish_reason),
        "input_tokens": ending.usage.input_tokens,
        "output_tokens": ending.usage.output_tokens,
    }


def _stored_message(document: Mapping[str, Any], created_at: datetime) -> Message:
    tokens = document["input_tokens"], document["output_tokens"]
    return Message(
        id=MessageId(UUID(document["id"])),
        session_id=SessionId(UUID(document["session_id"])),
        parent_message_id=MessageId(UUID(document["parent_message_id"])),
        sequence_number=document["sequence_number"],
        role=document["role"],
        content=document["content"],
        tool_calls=document["tool_calls"],
        tool_call_id=document["tool_call_id"],
        ai_provider=document["ai_provider"],
        ai_model=document["ai_model"],
        finish_reason=document["finish_reason"],
        usage=Usage(*tokens) if tokens[0] is not None else None,
        created_at=created_at,
    )
