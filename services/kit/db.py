"""Postgres through SQLAlchemy Core: one engine a process, one transaction a store method."""

import re
from typing import Any

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.kit import telemetry
from services.kit.telemetry import SpanKind

CONNECT_TIMEOUT_SECONDS = 2
STATEMENT_TIMEOUT_MS = 10_000


def sqlalchemy_url(database_url: str) -> str:
    """The same server and database, through psycopg 3."""
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg://", database_url)


def create_engine(database_url: str, *, pool_size: int, application: str) -> AsyncEngine:
    """An engine whose waits are bounded: 2 s for a connection, 10 s for a statement."""
    engine = create_async_engine(
        sqlalchemy_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": f"backendai-{application}",
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC",
            "prepare_threshold": 2,
        },
    )
    if telemetry.tracing():
        _trace_statements(engine)
    return engine


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


def autocommit(engine: AsyncEngine) -> AsyncEngine:
    """The same pool for single statements, each its own transaction without BEGIN and COMMIT."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def is_down(error: BaseException) -> bool:
    """Whether the database could not be reached or broke off, rather than refused what it was asked."""
    if isinstance(error, PoolTimeout | psycopg.OperationalError | psycopg.InterfaceError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError | InterfaceError)
