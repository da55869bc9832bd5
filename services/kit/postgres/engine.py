"""Postgres through SQLAlchemy Core, for statements that are put together from parts: one engine a process.

Its pool makes connections as `Database` does and checks them alike.
"""

import time
from typing import Any

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.kit import telemetry
from services.kit.postgres.connection import (
    CONNECT_TIMEOUT_SECONDS,
    Connection,
    Connector,
    PreparedStatements,
)
from services.kit.postgres.errors import FORGOTTEN_STATEMENT, never_began
from services.kit.telemetry import SpanKind


def create_engine(
    database_url: str, *, pool_size: int, application: str, prepared_statements: PreparedStatements = "auto"
) -> AsyncEngine:
    """An engine whose waits are bounded: 2 s for a connection, 3 s for a statement."""
    connector = Connector(database_url, application=application, prepared_statements=prepared_statements)

    async def connect() -> Connection:
        connection = await connector.connect()
        connection.row_factory = tuple_row
        await connection.set_autocommit(False)
        return connection

    engine = create_async_engine(
        "postgresql+psycopg://",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        pool_use_lifo=True,
        async_creator=connect,
    )
    _check_connections(engine, connector)
    if telemetry.tracing():
        _trace_statements(engine)
    return engine


def autocommit(engine: AsyncEngine) -> AsyncEngine:
    """The same pool for single statements, each its own transaction without BEGIN and COMMIT."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _check_connections(engine: AsyncEngine, connector: Connector) -> None:
    """Give no dead connection out; where one is dead, leave all that were connected before."""

    def note_use(dbapi_connection: Any, _record: object) -> None:
        if dbapi_connection is not None:
            dbapi_connection.driver_connection.used_at = time.monotonic()

    def check(dbapi_connection: Any, _record: object, _proxy: object) -> None:
        if not dbapi_connection.run_async(_is_alive):
            raise InvalidatePoolError

    def leave_lost(context: ExceptionContext) -> None:
        error = context.original_exception
        if isinstance(error, FORGOTTEN_STATEMENT):
            connector.stop_preparing()
        if isinstance(error, psycopg.Error) and never_began(error):
            context.is_disconnect = True

    event.listen(engine.sync_engine, "checkin", note_use)
    event.listen(engine.sync_engine, "checkout", check)
    event.listen(engine.sync_engine, "handle_error", leave_lost)


async def _is_alive(connection: Connection) -> bool:
    return await connection.is_alive()


def _trace_statements(engine: AsyncEngine) -> None:
    """A span for each statement, without its values."""

    def begin(
        _connection: object, _cursor: object, statement: str, _values: object, context: Any, _many: object
    ) -> None:
        context.span = telemetry.begin("postgresql", SpanKind.CLIENT, attributes=telemetry.sql(statement))

    def end(_connection: object, _cursor: object, _statement: object, _values: object, context: Any, _: object) -> None:
        context.span.end()

    def fail(failed: ExceptionContext) -> None:
        span = getattr(failed.execution_context, "span", None)
        if span is not None:
            telemetry.fail(span, type(failed.original_exception).__name__)
            span.end()

    event.listen(engine.sync_engine, "before_cursor_execute", begin)
    event.listen(engine.sync_engine, "after_cursor_execute", end)
    event.listen(engine.sync_engine, "handle_error", fail)
