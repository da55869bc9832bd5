"""Sessions and their messages as users read and change them."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from services.chat.domain import Message, MessageId, Permission, Session, SessionId, SessionSettings, SessionStatus
from services.chat.errors import TaskInProgress, VersionMismatch
from services.chat.store import idempotency
from services.chat.store.rows import to_message, to_session
from services.chat.store.tables import messages, sessions, shares
from services.chat.store.visibility import (
    active_task_id,
    caller_parameters,
    is_owner,
    is_shared,
    is_visible,
    own_share,
    visible_from,
    visible_sessions,
)
from services.kit.callers import Caller
from services.kit.errors import InvalidCursor, NotFound, PermissionDenied
from services.kit.ids import parse_id
from services.kit.paging import Page, PageQuery, page_of, to_number
from services.kit.postgres.engine import autocommit

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

ONE = visible_sessions().where(sessions.c.id == bindparam("session"))

VISIBLE_ID = select(sessions.c.id).select_from(visible_from).where(is_visible)

MESSAGES = (
    select(messages)
    .join(sessions, sessions.c.id == messages.c.session_id)
    .outerjoin(own_share, and_(own_share.c.session_id == sessions.c.id, own_share.c.user_id == bindparam("user")))
    .where(is_visible, sessions.c.id == bindparam("session"))
)


class SessionStore:
    """What users see of the chat schema. Every statement is scoped by the caller."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._autocommit = autocommit(engine)

    async def find_twin(self, key: idempotency.Key) -> SessionId | None:
        """The session that the key has opened before."""
        async with self._autocommit.connect() as connection:
            twin = await idempotency.find(connection, key)
        return SessionId(twin) if twin is not None else None

    async def add(
        self, caller: Caller, session_id: SessionId, settings: SessionSettings, key: idempotency.Key | None
    ) -> SessionId:
        """Open a session; with a key that was used before, the session that it opened."""
        row = {"id": session_id, "workspace_id": caller.workspace_id, "user_id": caller.user_id, **asdict(settings)}
        async with self._engine.begin() as connection:
            if key is not None:
                twin = await idempotency.claim(connection, key, session_id)
                if twin is not None:
                    return SessionId(twin)
            await connection.execute(insert(sessions), row)
        return session_id

    async def get(self, caller: Caller, session_id: SessionId) -> Session:
        """One session the caller can see."""
        async with self._autocommit.connect() as connection:
            found = (
                (await connection.execute(ONE, {**caller_parameters(caller), "session": session_id}))
                .mappings()
                .one_or_none()
            )
        if found is None:
            raise NotFound
        return to_session(found)

    async def page(
        self, caller: Caller, query: PageQuery, *, owned: bool, shared: bool, status: SessionStatus | None
    ) -> Page[Session]:
        """The caller's own sessions, those shared with it, or both, newest activity first."""
        statement = _page_statement(query, owned=owned, shared=shared, status=status)
        async with self._autocommit.connect() as connection:
            found = (await connection.execute(statement, caller_parameters(caller))).mappings().all()
        return page_of(query, [to_session(row) for row in found], _position)

    async def sees_any(self, caller: Caller) -> bool:
        """Whether anything in the workspace is visible to the caller."""
        async with self._autocommit.connect() as connection:
            return bool(await connection.scalar(select(VISIBLE_ID.exists()), caller_parameters(caller)))

    async def update(
        self, caller: Caller, session_id: SessionId, values: Mapping[str, Any], *, if_version: int | None
    ) -> Session:
        """Change settings; the version and the owner are checked in the statement that changes them."""
        statement = (
            update(sessions)
            .where(
                sessions.c.id == session_id,
                sessions.c.workspace_id == caller.workspace_id,
                sessions.c.deleted_at.is_(None),
                sessions.c.user_id == caller.user_id,
                literal(caller.is_member),
                true() if if_version is None else sessions.c.version == if_version,
            )
            .values(**values, version=sessions.c.version + 1, updated_at=func.now())
            .returning(
                sessions,
                literal("owner").label("permission"),
                is_shared.label("is_shared"),
                active_task_id.label("active_task_id"),
            )
        )
        async with self._autocommit.connect() as connection:
            changed = (await connection.execute(statement)).mappings().one_or_none()
        if changed is None:
            await self._explain_refusal(caller, session_id)
        return to_session(changed)

    async def _explain_refusal(self, caller: Caller, session_id: SessionId) -> NoReturn:
        """Raise why an owner's statement changed nothing: not there, not the owner, another version."""
        session = await self.get(caller, session_id)
        if session.permission is not Permission.OWNER:
            raise PermissionDenied
        raise VersionMismatch(version=str(session.version))

    async def delete(self, caller: Caller, session_id: SessionId, *, if_version: int | None) -> Collection[UUID]:
        """Bury a session and end or mark its task; the ids of tasks that still run and have to be told.

        The session's row is locked first here and in every statement that ends a turn, so the two can't deadlock.
        """
        bury = (
            update(sessions)
            .where(
                sessions.c.id == session_id,
                sessions.c.workspace_id == caller.workspace_id,
                sessions.c.deleted_at.is_(None),
                or_(
                    and_(sessions.c.user_id == caller.user_id, literal(caller.is_member)),
                    literal(caller.is_admin),
                ),
                true() if if_version is None else sessions.c.version == if_version,
            )
            .values(deleted_at=func.now(), shareable_link_id=None)
            .returning(sessions.c.id)
        )
        async with self._engine.begin() as connection:
            if (await connection.execute(bury)).one_or_none() is not None:
                running = await connection.execute(END_TASKS_OF_DELETED, {"session": session_id})
                return [row.id for row in running if row.state == "running"]
        return await self._explain_refusal(caller, session_id)

    async def message_page(
        self, caller: Caller, session_id: SessionId, query: PageQuery, *, descending: bool
    ) -> Page[Message]:
        """Messages by sequence number."""
        down = descending != query.backwards
        order = messages.c.sequence_number.desc() if down else messages.c.sequence_number.asc()
        statement = MESSAGES.order_by(order).limit(query.limit + 1)
        if query.position is not None:
            number = to_number(query.position, digits=18)
            statement = statement.where(
                messages.c.sequence_number < number if down else messages.c.sequence_number > number
            )
        parameters = {**caller_parameters(caller), "session": session_id}
        async with self._autocommit.connect() as connection:
            found = (await connection.execute(statement, parameters)).mappings().all()
        if not found:
            await self.get(caller, session_id)
        return page_of(query, [to_message(row) for row in found], lambda message: str(message.sequence_number))

    async def delete_message(self, caller: Caller, session_id: SessionId, message_id: MessageId) -> None:
        """Delete an answer, or a user message with its turn; TaskInProgress while the session runs a task."""
        owned = select(sessions.c.id).where(
            sessions.c.id == session_id,
            sessions.c.workspace_id == caller.workspace_id,
            sessions.c.deleted_at.is_(None),
            sessions.c.user_id == caller.user_id,
            literal(caller.is_member),
        )
        async with self._engine.begin() as connection:
            if await connection.scalar(owned.with_for_update()) is None:
                await self._explain_refusal(caller, session_id)
            done = (await connection.execute(DELETE_TURN, {"session": session_id, "message": message_id})).one()
        if not done.gone:
            await self.get_message(caller, session_id, message_id)
            raise TaskInProgress(task_id=str(done.busy))

    async def get_message(self, caller: Caller, session_id: SessionId, message_id: MessageId) -> Message:
        """One message of a session the caller can see."""
        statement = MESSAGES.where(messages.c.id == message_id)
        parameters = {**caller_parameters(caller), "session": session_id}
        async with self._autocommit.connect() as connection:
            found = (await connection.execute(statement, parameters)).mappings().one_or_none()
        if found is None:
            raise NotFound
        return to_message(found)


# The session is locked before this runs, and a turn that is being admitted needs that lock for its foreign key: either
# the turn is seen here, or it finds the message gone when it is accepted.
DELETE_TURN = text(
    """
    with busy as (
      select id from chat.tasks where session_id = :session and state in ('admitted', 'queued', 'running')
    ), gone as (
      delete from chat.messages m
      where m.session_id = :session and (m.id = :message or m.parent_message_id = :message)
        and not exists (select 1 from busy)
      returning m.id
    ), counted as (
      update chat.sessions set message_count = message_count - (select count(*) from gone), updated_at = now()
      where id = :session and exists (select 1 from gone)
    )
    select (select count(*) from gone) as gone, (select id from busy) as busy
    """
)

# Admitted turns were never accepted: the reaper releases their holds. Queued ones end at once and free. A running one
# is told to stop; it ends as cancelled and stores nothing, since its session is gone.
END_TASKS_OF_DELETED = text(
    """
    update chat.tasks set
      state = case state when 'admitted' then 'abandoned' when 'queued' then 'cancelled' else state end,
      ended_at = case state when 'queued' then now() end,
      cancel_requested_at = coalesce(cancel_requested_at, now()),
      updated_at = now()
    where session_id = :session and state in ('admitted', 'queued', 'running')
    returning id, state
    """
)


def _page_statement(query: PageQuery, *, owned: bool, shared: bool, status: SessionStatus | None) -> Select[Any]:
    """The owned and the shared branch each walk their own index; their union is sorted and cut."""
    newest = (sessions.c.updated_at, sessions.c.id)
    order = [column.asc() if query.backwards else column.desc() for column in newest]
    condition: ColumnElement[bool] = true()
    if query.position is not None:
        position = tuple_(*_activity(query.position))
        condition = tuple_(*newest) > position if query.backwards else tuple_(*newest) < position
    if status is not None:
        condition = and_(condition, sessions.c.status == status)
    branches = []
    base = and_(sessions.c.workspace_id == bindparam("workspace"), sessions.c.deleted_at.is_(None), condition)
    if owned:
        branches.append(select(sessions.c.id).where(base, is_owner).order_by(*order).limit(query.limit + 1).subquery())
    if shared:
        branches.append(
            select(sessions.c.id)
            .join(shares, shares.c.session_id == sessions.c.id)
            .where(base, shares.c.user_id == bindparam("user"))
            .order_by(*order)
            .limit(query.limit + 1)
            .subquery()
        )
    ids = or_(*(sessions.c.id.in_(select(branch.c.id)) for branch in branches))
    return visible_sessions().where(ids).order_by(*order).limit(query.limit + 1)


def _position(session: Session) -> str:
    return f"{(session.updated_at - EPOCH) // MICROSECOND}.{session.id}"


def _activity(position: str) -> tuple[datetime, UUID]:
    micros, _, identifier = position.partition(".")
    parsed = parse_id(identifier)
    if parsed is None:
        raise InvalidCursor
    return EPOCH + to_number(micros, digits=17) * MICROSECOND, parsed
