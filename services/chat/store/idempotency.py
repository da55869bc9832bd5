"""Idempotency keys: the first request with a key makes the resource, its twins are told which."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.chat.domain import IDEMPOTENCY_KEY_LIFE
from services.chat.errors import IdempotencyKeyReused


@dataclass(frozen=True, slots=True)
class Key:
    """What a client said to make two requests one: bound to its user and route, with a digest of the body."""

    user_id: str
    route: str
    key: str
    fingerprint: bytes


# The race of twins: the second insert waits here for the first's commit, then changes nothing and returns no row.
CLAIM = text(
    """
    insert into chat.idempotency_keys as existing (user_id, route, key, fingerprint, resource_id)
    values (:user_id, :route, :key, :fingerprint, :resource)
    on conflict (user_id, route, key) do update set
      fingerprint = excluded.fingerprint, resource_id = excluded.resource_id, created_at = now()
    where existing.created_at < now() - cast(:life as interval)
    returning resource_id
    """
)
FIND = text(
    """
    select fingerprint, resource_id from chat.idempotency_keys
    where user_id = :user_id and route = :route and key = :key and created_at >= now() - cast(:life as interval)
    """
)


async def claim(connection: AsyncConnection, key: Key, resource_id: UUID) -> UUID | None:
    """Bind the key to `resource_id` in the caller's transaction; the twin's resource when the key is bound already."""
    parameters = {
        "user_id": key.user_id,
        "route": key.route,
        "key": key.key,
        "fingerprint": key.fingerprint,
        "resource": resource_id,
        "life": IDEMPOTENCY_KEY_LIFE,
    }
    while True:
        if (await connection.execute(CLAIM, parameters)).one_or_none() is not None:
            return None
        twin = await find(connection, key)
        if twin is not None:  # else removed between the two statements: its turn was refused, so this one is the first
            return twin


async def find(connection: AsyncConnection, key: Key) -> UUID | None:
    """What the key is bound to; None when it is free."""
    parameters = {"user_id": key.user_id, "route": key.route, "key": key.key, "life": IDEMPOTENCY_KEY_LIFE}
    twin = (await connection.execute(FIND, parameters)).one_or_none()
    if twin is None:
        return None
    if twin.fingerprint != key.fingerprint:
        raise IdempotencyKeyReused
    return UUID(str(twin.resource_id))


class KeyStore:
    """Keys of work that is not chat's own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def bind(self, key: Key, resource_id: UUID) -> UUID:
        """Bind the key in a transaction of its own; what it is bound to. IdempotencyKeyReused for another body."""
        async with self._engine.begin() as connection:
            return await claim(connection, key, resource_id) or resource_id
