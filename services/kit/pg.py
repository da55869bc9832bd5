"""Postgres where each statement counts: straight through psycopg, in a third of the CPU of an asyncio engine."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, LiteralString

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row

from services.kit import telemetry
from services.kit.db import CONNECT_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_MS
from services.kit.telemetry import SpanKind

Cursor = psycopg.AsyncCursor[DictRow]

_NO_PARAMETERS: Mapping[str, Any] = {}


class Database:
    """A pool of connections for single statements, each a transaction of its own.

    It connects when a statement needs it, so it may be made before the server is there; every wait is bounded: 2 s for
    a place or a connection, 10 s for a statement. A failure to reach the server is a psycopg.OperationalError.
    """

    def __init__(self, database_url: str, *, pool_size: int, application: str) -> None:
        self._url = database_url
        self._options: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": f"backendai-{application}",
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC",
            # A server that vanished without a word is noticed by this side.
            "tcp_user_timeout": STATEMENT_TIMEOUT_MS,
        }
        self._places = asyncio.Semaphore(pool_size)
        self._idle: list[Cursor] = []

    async def fetch(self, statement: LiteralString, parameters: Mapping[str, Any] = _NO_PARAMETERS) -> list[DictRow]:
        """Run one statement with `%(name)s` parameters and return its rows, none for one that makes none."""
        await self._take_place()
        try:
            cursor = self._idle.pop() if self._idle else await self._connect()
            try:
                with telemetry.span("postgresql", SpanKind.CLIENT, attributes=telemetry.sql(statement)):
                    await cursor.execute(statement, parameters)
                makes_rows = cursor.pgresult is not None and cursor.pgresult.nfields
                return await cursor.fetchall() if makes_rows else []
            finally:
                await self._put_back(cursor)
        finally:
            self._places.release()

    async def close(self) -> None:
        """Hang up what is idle; what is in use is hung up by nobody, so let the calls end first."""
        while self._idle:
            await self._idle.pop().connection.close()

    async def _take_place(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise psycopg.OperationalError("no connection became free in time") from None

    async def _connect(self) -> Cursor:
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, prepare_threshold=2, row_factory=dict_row, **self._options
        )
        return connection.cursor()

    async def _put_back(self, cursor: Cursor) -> None:
        connection = cursor.connection
        if connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(cursor)
            return
        lost = connection.broken
        with suppress(psycopg.Error):
            await connection.close()
        if lost:  # the server went away, and with it the other end of the idle ones
            await self.close()
