"""Alembic for one service's schema: upgrades under an advisory lock, so that replicas can start together."""

from pathlib import Path

from alembic import command, context
from alembic.config import Config
from sqlalchemy import MetaData, create_engine, text
from sqlalchemy.engine import Connection

from services.kit.db import sqlalchemy_url

ADVISORY_LOCK = 7_203_115


def config(folder: Path, connection: Connection) -> Config:
    """Alembic's configuration for the migrations in `folder`, on an open connection."""
    cfg = Config()
    cfg.set_main_option("script_location", str(folder))
    cfg.attributes["connection"] = connection
    return cfg


def upgrade(folder: Path, schema: str, database_url: str) -> None:
    """Bring one schema to its newest version. Safe to run from several places at once."""
    engine = create_engine(sqlalchemy_url(database_url))
    with engine.begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text(f"create schema if not exists {schema}"))
        command.upgrade(config(folder, connection), "head")
    engine.dispose()


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
