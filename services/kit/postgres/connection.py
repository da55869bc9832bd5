"""How this project connects to PostgreSQL, whoever asks: bounded waits, UTC, nothing that a session has to remember.

A connection says nothing in its start-up packet that poolers refuse (no `options`), and sets nothing later: it may be
another server session at each transaction.
"""

import asyncio
import secrets
import select
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg.abc import PQGen
from psycopg.adapt import Buffer, Loader
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from services.kit.postgres import url

PreparedStatements: TypeAlias = Literal["auto", "on", "off"]

CONNECT_TIMEOUT_SECONDS = 2
STATEMENT_SECONDS = 3.0
# Between the request to cancel a late statement and the end of its connection.
CANCEL_SECONDS = 0.5
# A connection that was idle for longer is asked for a sign of life before it is used.
FRESH_SECONDS = 1.0
# One that was idle for less is used without any look at it.
BUSY_SECONDS = 0.02
CHECK_SECONDS = 1.0
PREPARE_THRESHOLD = 2

# A peer that vanished is noticed by this side, also while nothing is sent; and a middlebox sees traffic. The URL wins.
_TCP = {
    "keepalives": "1",
    "keepalives_idle": "20",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "3000",
}
_UTC_NAMES = frozenset({"UTC", "Etc/UTC", "GMT", "Etc/GMT", "Zulu", "UCT"})


def connect_options(database_url: str, *, application: str) -> dict[str, Any]:
    """libpq's parameters of a connection, for every connection of the project."""
    own = {
        "connect_timeout": str(CONNECT_TIMEOUT_SECONDS),
        "application_name": f"backendai-{application}",
        **_TCP,
    }
    return {**own, **url.parse(database_url)}


class UtcLoader(Loader):
    """Timestamps in UTC from a session that has another time zone."""

    def load(self, data: Buffer) -> datetime:
        """Of ISO text."""
        return datetime.fromisoformat(bytes(data).decode()).astimezone(UTC)


class Connection(psycopg.AsyncConnection[Any]):
    """A connection on which nothing waits for longer than `patience` seconds.

    A late statement fails, whatever the server may still say of it: PostgreSQL reports success for a commit whose wait
    for a standby was cancelled. The server is asked to cancel it, and the connection is closed.
    """

    patience = STATEMENT_SECONDS
    used_at = 0.0
    is_late = False
    _poller: "select.poll | None" = None

    async def wait(
        self,
        gen: PQGen[Any],
        interval: float = 0.0,
        timeout: float | None = None,  # noqa: ASYNC109  # psycopg's own
    ) -> Any:
        """Carry out any of libpq's operations, in time."""
        limit = self.patience - CANCEL_SECONDS if timeout is None else timeout
        try:
            return await psycopg.AsyncConnection.wait(self, gen, interval or limit, limit)
        except Exception as error:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            await self._cancel_and_close()
            raise psycopg.OperationalError("the server did not answer in time") from error

    async def _cancel_and_close(self) -> None:
        """Have the server stop, if it can be asked to."""
        self.is_late = True
        try:
            with suppress(psycopg.Error):
                await self.cancel_safe(timeout=CANCEL_SECONDS)
        finally:
            await self.close()

    @property
    def is_reusable(self) -> bool:
        """Whether the next statement may run on it."""
        return self.pgconn.transaction_status == TransactionStatus.IDLE

    async def is_alive(self) -> bool:
        """Whether it may be used again, as far as can be known. Only one that was idle for long is asked for an answer:
        a middlebox may have forgotten it without a word.
        """
        idle_seconds = time.monotonic() - self.used_at
        if idle_seconds < BUSY_SECONDS:
            return True
        if self._has_news():
            return False
        return idle_seconds < FRESH_SECONDS or await self.answers()

    def _has_news(self) -> bool:
        """Whether something came while it was idle: its end, mostly, or the server's reason for that. Costs no wait."""
        if self._poller is None:
            self._poller = select.poll()
            self._poller.register(self.pgconn.socket, select.POLLIN)
        return bool(self._poller.poll(0))

    async def answers(self) -> bool:
        """Ask for a sign of life."""
        self.patience, autocommit = CHECK_SECONDS, self.autocommit
        try:
            await self.set_autocommit(True)
            await self.execute("", prepare=False)
            await self.set_autocommit(autocommit)
        except psycopg.Error:
            return False
        finally:
            self.patience = STATEMENT_SECONDS
        return self.is_reusable


class Connector:
    """Makes a process's connections, and knows whether statements may be prepared on them."""

    def __init__(
        self, database_url: str, *, application: str, prepared_statements: PreparedStatements = "auto"
    ) -> None:
        self._targets = _targets(connect_options(database_url, application=application))
        self._prepared_statements = prepared_statements
        self.prepares = prepared_statements != "off"

    async def connect(self) -> Connection:
        """A connection in autocommit whose rows are dicts, within CONNECT_TIMEOUT_SECONDS.

        All hosts of a list are tried at once: one that is switched off answers nothing, which takes all the time.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                if len(self._targets) == 1:
                    return await self._connect(self._targets[0])
                return await self._connect_to_any()
        except TimeoutError:
            raise psycopg.OperationalError("no connection could be made in time") from None

    async def _connect_to_any(self) -> Connection:
        tries = [asyncio.create_task(self._connect(target)) for target in self._targets]
        chosen: Connection | None = None
        try:
            pending = set(tries)
            while pending and chosen is None:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                chosen = next((task.result() for task in done if task.exception() is None), None)
        finally:
            for task in tries:
                task.cancel()
            outcomes = await asyncio.gather(*tries, return_exceptions=True)
            for other in outcomes:
                if isinstance(other, Connection) and other is not chosen:
                    await other.close()
        if chosen is None:
            raise next(outcome for outcome in outcomes if isinstance(outcome, BaseException))
        return chosen

    async def _connect(self, options: dict[str, Any]) -> Connection:
        connection = await Connection.connect(autocommit=True, prepare_threshold=None, row_factory=dict_row, **options)
        try:
            await self._set_up(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _set_up(self, connection: Connection) -> None:
        if connection.info.parameter_status("TimeZone") not in _UTC_NAMES:
            connection.adapters.register_loader("timestamptz", UtcLoader)
        if self.prepares and (self._prepared_statements == "on" or await _is_direct(connection)):
            connection.prepare_threshold = PREPARE_THRESHOLD
            # psycopg counts from 0 on each connection. On a server session that a pooler lends to several of them, a
            # name would run another one's statement.
            connection._prepared._prepared_idx = secrets.randbits(60)
        connection.used_at = time.monotonic()

    def stop_preparing(self) -> None:
        """Prepare nothing any more: a pooler between has shown itself."""
        self.prepares = False


def _targets(options: dict[str, Any]) -> list[dict[str, Any]]:
    """The same options for each host of a list."""
    hosts, ports = str(options.get("host", "")).split(","), str(options.get("port", "")).split(",")
    if len(hosts) == 1 or options.get("hostaddr"):
        return [options]
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    return [{**options, "host": host, "port": port} for host, port in zip(hosts, ports, strict=True)]


async def _is_direct(connection: Connection) -> bool:
    """Whether the server session is this connection's own. A pooler hands out process ids of its own making."""
    cursor = await connection.execute("select pg_backend_pid() as pid", prepare=False)
    found = await cursor.fetchone()
    return found is not None and found["pid"] == connection.info.backend_pid
