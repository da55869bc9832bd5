"""Races that happen for certain: statements are made to wait for a row, then let go together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.postgres.engine import autocommit

WITHIN_SECONDS = 10.0

_WAITING = text("""
    select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
""")


@asynccontextmanager
async def locked(engine: AsyncEngine, table: str, column: str, id: UUID) -> AsyncIterator[None]:
    """Keep one row of billing's locked for the length of the block."""
    async with engine.begin() as connection:
        await connection.execute(text(f"select from billing.{table} where {column} = :id for update"), {"id": id})
        yield


async def until_waiting(engine: AsyncEngine, statements: int) -> None:
    """Return when that many statements wait for a lock."""
    # Each look is a transaction: within one, the activity stays as it was first seen.
    async with asyncio.timeout(WITHIN_SECONDS), autocommit(engine).connect() as connection:
        while (await connection.execute(_WAITING)).scalar_one() < statements:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
