"""The migrations and the tables say the same."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.billing.migrations.__main__ import main
from services.billing.tables import SCHEMA, metadata


async def test_the_migrated_schema_is_the_one_in_the_code(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []


async def test_every_check_of_the_tables_is_in_the_database(engine: AsyncEngine) -> None:
    asked = "select conname from pg_constraint where connamespace = 'billing'::regnamespace and contype = 'c'"
    async with engine.connect() as connection:
        found = set((await connection.execute(text(asked))).scalars())
    named = {str(check.name) for table in metadata.tables.values() for check in table.constraints if check.name}
    assert {name for name in named if name.endswith("_check")} == found


async def test_migrating_again_changes_nothing(
    database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    main()
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": True,
            "version_table_schema": SCHEMA,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
        },
    )
    return list(compare_metadata(context, metadata))
