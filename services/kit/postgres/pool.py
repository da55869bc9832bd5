"""The pool: straight through psycopg, in a third of the CPU of an asyncio engine of SQLAlchemy.

It is our own rather than psycopg_pool, see docs/adr/0009.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, LiteralString, TypeAlias

import psycopg
import structlog
from psycopg.rows import DictRow as DictRow

from services.kit import telemetry
from services.kit.postgres.connection import (
    CONNECT_TIMEOUT_SECONDS,
    STATEMENT_SECONDS,
    Connection,
    Connector,
    PreparedStatements,
)
from services.kit.postgres.errors import FORGOTTEN_STATEMENT, never_began
from services.kit.telemetry import SpanKind

log = structlog.get_logger()

CHORE_SECONDS = 10.0
"""For statements that no caller waits for."""
# What a statement gets at least, however long it waited for its connection.
MIN_STATEMENT_SECONDS = 1.0

Cursor: TypeAlias = psycopg.AsyncCursor[DictRow]

NO_PARAMETERS: Mapping[str, Any] = {}


class Database:
    """A pool of connections for single statements, each a transaction of its own.

    It connects when a statement needs it, so it may be made before the server is there. A place, a connection and the
    statement itself get `seconds` together. A failure to reach the server is a psycopg.OperationalError, at once where
    the server refuses. A statement that has certainly not begun is sent once more, on a new connection.
    """

    def __init__(
        self,
        database_url: str,
        *,
        pool_size: int,
        application: str,
        prepared_statements: PreparedStatements = "auto",
    ) -> None:
        self._connector = Connector(database_url, application=application, prepared_statements=prepared_statements)
        self._places = asyncio.Semaphore(pool_size)
        # The last one used is the first one taken: those further down were idle for longer.
        self._idle: list[tuple[Connection, Cursor]] = []

    async def fetch(
        self,
        statement: LiteralString,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
        *,
        seconds: float = STATEMENT_SECONDS,
    ) -> list[DictRow]:
        """Run one statement with `%(name)s` parameters and return its rows, none for one that makes none."""
        until = time.monotonic() + seconds
        await self._take_place()
        try:
            try:
                return await self._run(statement, parameters, until)
            except psycopg.Error as error:
                if not never_began(error):
                    raise
                await self._start_over(error)
            return await self._run(statement, parameters, until)
        finally:
            self._places.release()

    async def close(self) -> None:
        """Close idle connections. Those in use are closed by nobody, so let the calls end first."""
        while self._idle:
            connection, _ = self._idle.pop()
            await connection.close()

    async def _run(self, statement: LiteralString, parameters: Mapping[str, Any], until: float) -> list[DictRow]:
        connection, cursor = await self._take()
        try:
            connection.patience = max(until - time.monotonic(), MIN_STATEMENT_SECONDS)
            if telemetry.tracing():
                with telemetry.span("postgresql", SpanKind.CLIENT, attributes=telemetry.sql(statement)):
                    await cursor.execute(statement, parameters)
            else:
                await cursor.execute(statement, parameters)
            makes_rows = cursor.pgresult is not None and cursor.pgresult.nfields
            return await cursor.fetchall() if makes_rows else []
        finally:
            if connection.is_reusable:
                connection.used_at = time.monotonic()
                self._idle.append((connection, cursor))
            else:
                await self._leave(connection)

    async def _start_over(self, error: psycopg.Error) -> None:
        """Leave all that was connected before: the next connection is a new one."""
        if isinstance(error, FORGOTTEN_STATEMENT):
            self._connector.stop_preparing()
        log.info("statement_sent_again", error=type(error).__name__)
        await self.close()

    async def _take_place(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise psycopg.OperationalError("no connection became free in time") from None

    async def _take(self) -> tuple[Connection, Cursor]:
        """An idle connection that is alive, or a new one."""
        if self._idle:
            connection, cursor = self._idle.pop()
            if await self._is_alive(connection):
                return connection, cursor
            # Most often the others are gone for the same reason.
            log.info("idle_connections_lost", connections=len(self._idle) + 1)
            await connection.close()
            await self.close()
        connection = await self._connector.connect()
        return connection, connection.cursor()

    async def _is_alive(self, connection: Connection) -> bool:
        try:
            return await connection.is_alive()
        except BaseException:
            await connection.close()
            raise

    async def _leave(self, connection: Connection) -> None:
        """Close a connection that can't be used again."""
        is_lost = connection.broken or connection.is_late
        with suppress(psycopg.Error):
            await connection.close()
        if is_lost:  # and with it, most often, the other end of the idle ones
            await self.close()
