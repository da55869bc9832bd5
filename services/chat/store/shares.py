"""Who else can see a session: shares with users, and the public link. Only its owner's statements change anything."""

from typing import Final, LiteralString
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from services.chat.domain import Permission, PublicMessage, PublicSession, SessionId, Share
from services.chat.store import idempotency
from services.chat.store.rows import Fields
from services.chat.store.visibility import caller_parameters
from services.kit.callers import Caller
from services.kit.paging import Page, PageQuery, page_of
from services.kit.postgres.pool import Database

OWNED: Final = """
    select s.id from chat.sessions s
    where s.id = %(session)s and s.workspace_id = %(workspace)s and s.deleted_at is null
      and s.user_id = %(user)s and %(member)s
"""

# Two shares with one user at once: the second updates what the first has inserted; xmax tells them apart.
SHARE: Final = f"""
    insert into chat.shares as given (session_id, user_id, permission)
    select owned.id, %(with_user)s, %(permission)s from ({OWNED}) owned
    on conflict (session_id, user_id) do update set permission = excluded.permission
    returning user_id, permission, created_at, given.xmax = 0 as created
    """  # noqa: S608  # the inserted text is the constant above
# What a key's first call has given, as it is now. That call stored both rows in one transaction, so a share that was
# new to it is as old as the key.
GIVEN: Final = f"""
    select given.user_id, given.permission, given.created_at, given.created_at = k.created_at as created
    from ({OWNED}) owned
    join chat.shares given on given.session_id = owned.id and given.user_id = %(with_user)s
    join chat.idempotency_keys k on k.user_id = %(user)s and k.route = %(route)s and k.key = %(key)s
    """  # noqa: S608
REVOKE: Final = f"""
    delete from chat.shares where session_id = ({OWNED}) and user_id = %(with_user)s returning user_id
"""  # noqa: S608
SHARES: Final = f"""
    select owned.id, given.user_id, given.permission, given.created_at
    from ({OWNED}) owned left join chat.shares given on given.session_id = owned.id
"""  # noqa: S608
SHARES_FORWARD: Final = f"{SHARES} and given.user_id > %(after)s order by given.user_id limit %(limit)s"
SHARES_BACKWARD: Final = f"{SHARES} and given.user_id < %(after)s order by given.user_id desc limit %(limit)s"

# Each switch-on makes a new link, so that one that was given away before stays dead.
TOGGLE: Final = f"""
    update chat.sessions set
      shareable_link_id = case when shareable_link_id is null then gen_random_uuid() end, updated_at = now()
    where id = ({OWNED})
    returning id
    """  # noqa: S608

MAX_PUBLIC_MESSAGES = 1_000
MAX_PUBLIC_BYTES = 8 * 1024 * 1024
PUBLIC: Final = """
    select s.name, s.created_at, m.role, m.content, m.created_at as written_at
    from chat.sessions s
    left join lateral (
      select *, sum(octet_length(content)) over (order by sequence_number desc) as total from (
        select sequence_number, role, content, created_at from chat.messages
        where session_id = s.id and role in ('user', 'assistant') and content <> ''
        order by sequence_number desc limit %(messages)s) newest
    ) m on m.total <= %(bytes)s
    where s.shareable_link_id = %(link)s and s.deleted_at is null
    order by m.sequence_number
    """


class ShareStore:
    """Shares and public links. None means: not the owner, or nothing there; the use case says which."""

    def __init__(self, engine: AsyncEngine, database: Database) -> None:
        self._engine, self._database = engine, database

    async def share(
        self, caller: Caller, session_id: SessionId, user_id: str, permission: Permission, key: idempotency.Key | None
    ) -> tuple[Share, bool] | None:
        """Give a user access, or change it; whether the share is new. A key that was used before changes nothing."""
        values = {"with_user": user_id, "permission": permission}
        if key is None:
            row = await self._one(SHARE, caller, session_id, **values)
        else:
            is_first, row = await self._once(key, SHARE, caller, session_id, **values)
            if not is_first:
                row = await self._one(GIVEN, caller, session_id, with_user=user_id, route=key.route, key=key.key)
        return (_to_share(row), row["created"]) if row is not None else None

    async def revoke(self, caller: Caller, session_id: SessionId, user_id: str) -> bool:
        """Take a share back; whether there was one."""
        return await self._one(REVOKE, caller, session_id, with_user=user_id) is not None

    async def page(self, caller: Caller, session_id: SessionId, query: PageQuery) -> Page[Share] | None:
        """The shares of a session, by user id."""
        statement = SHARES_BACKWARD if query.backwards else SHARES_FORWARD
        parameters = {"session": session_id, "after": query.position or "", "limit": query.limit + 1}
        found = await self._database.fetch(statement, {**caller_parameters(caller), **parameters})
        if not found:
            return None
        shares = [_to_share(row) for row in found if row["user_id"] is not None]
        return page_of(query, shares, lambda share: share.user_id)

    async def toggle_public(self, caller: Caller, session_id: SessionId, key: idempotency.Key | None) -> bool:
        """Switch the public link, once for each key; whether it was the caller's to switch."""
        if key is None:
            return await self._one(TOGGLE, caller, session_id) is not None
        is_first, row = await self._once(key, TOGGLE, caller, session_id)
        return not is_first or row is not None

    async def public(self, link_id: UUID) -> PublicSession | None:
        """What a link shows; None for one that is unknown or dead."""
        parameters = {"link": link_id, "messages": MAX_PUBLIC_MESSAGES, "bytes": MAX_PUBLIC_BYTES}
        rows = await self._database.fetch(PUBLIC, parameters)
        if not rows:
            return None
        messages = [
            PublicMessage(row["role"], row["content"], row["written_at"]) for row in rows if row["role"] is not None
        ]
        return PublicSession(rows[0]["name"], rows[0]["created_at"], messages)

    async def _one(
        self, statement: LiteralString, caller: Caller, session_id: SessionId, **values: object
    ) -> Fields | None:
        parameters = {**caller_parameters(caller), "session": session_id, **values}
        rows = await self._database.fetch(statement, parameters)
        return rows[0] if rows else None

    async def _once(
        self, key: idempotency.Key, statement: LiteralString, caller: Caller, session_id: SessionId, **values: object
    ) -> tuple[bool, Fields | None]:
        """Bind the key and run the statement in one transaction, if no call before has bound it; whether this one did.

        A statement that finds nothing to change leaves the key free.
        """
        parameters = {**caller_parameters(caller), "session": session_id, **values}
        async with self._engine.begin() as connection:
            if await idempotency.claim(connection, key, session_id) is not None:
                return False, None
            row = (await connection.exec_driver_sql(statement, parameters)).mappings().one_or_none()
            if row is None:
                await connection.rollback()
            return True, row


def _to_share(row: Fields) -> Share:
    return Share(row["user_id"], Permission(row["permission"]), row["created_at"])
