"""Alembic for one service's schema: upgrades under an advisory lock, so that replicas can start together."""

from pathlib import Path

import psycopg
from alembic import command, context
from alembic.config import Config
from sqlalchemy import Engine, MetaData, create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from services.kit.postgres.connection import connect_options

ADVISORY_LOCK = 7_203_115
# A role may bound its statements and transactions; a migration takes what it takes.
LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")


def migration_engine(database_url: str) -> Engine:
    """A plain engine for one connection after the other, without prepared statements: a pooler may be between."""

    def connect() -> psycopg.Connection:
        return psycopg.connect(prepare_threshold=None, **connect_options(database_url, application="migrations"))

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)


def config(folder: Path, connection: Connection) -> Config:
    """Alembic's configuration for the migrations in `folder`, on an open connection."""
    cfg = Config()
    cfg.set_main_option("script_location", str(folder))
    cfg.attributes["connection"] = connection
    return cfg


def upgrade(folder: Path, schema: str, database_url: str) -> None:
    """Bring one schema to its newest version, in one transaction. Safe to run from several places at once."""
    with migration_engine(database_url).begin() as connection:
        for name in LIMITS:
            connection.execute(text(f"set local {name} = 0"))
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text(f"create schema if not exists {schema}"))
        command.upgrade(config(folder, connection), "head")


def run_env(metadata: MetaData, schema: str) -> None:
    """The body of a service's `migrations/env.py`."""
    connection: Connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=schema,
        include_schemas=True,
        include_name=lambda name, kind, _parents: kind != "schema" or name == schema,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()
