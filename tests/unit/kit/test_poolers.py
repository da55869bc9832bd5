"""Behind a pooler that refuses `options` and forgets prepared statements: found out by itself, or told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from services.kit.postgres.connection import Connection
from services.kit.postgres.engine import autocommit, create_engine
from services.kit.postgres.migrations import ADVISORY_LOCK, upgrade
from services.kit.postgres.pool import Database
from tests.conftest import SERVICES
from tests.fakes.pooler import Pooler
from tests.pgbouncer import PROGRAM, PgBouncer
from tests.servers import Postgres

KINDS = {
    "played": None,
    "pgbouncer's defaults": {},
    "pgbouncer by transaction": {"pool_mode": "transaction", "default_pool_size": "3"},
}


@pytest.fixture(params=KINDS)
async def pooled_url(request: pytest.FixtureRequest, postgres: Postgres, open_folder: Path) -> AsyncIterator[str]:
    """An empty database behind a pooler."""
    url = postgres.create_database("pooled")
    settings = KINDS[request.param]
    if settings is None:
        async with Pooler(url) as pooler:
            yield pooler.url_of(url)
    elif PROGRAM is None:
        pytest.skip("pgbouncer is not installed")
    else:
        folder = open_folder / request.param.replace("'", "").replace(" ", "-")
        with PgBouncer(folder, url, settings) as pgbouncer:
            yield pgbouncer.url
    await asyncio.to_thread(postgres.drop_database, "pooled")


async def test_what_the_project_sent_before_is_refused_by_it(pooled_url: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="startup parameter"):
        await psycopg.AsyncConnection.connect(pooled_url, options="-c statement_timeout=10000")


async def test_statements_run_in_any_order_on_whatever_connection_is_lent(pooled_url: str) -> None:
    database = Database(pooled_url, pool_size=5, application="test")
    engine = create_engine(pooled_url, pool_size=5, application="test")

    async def by_engine(number: int) -> int | None:
        async with engine.begin() as connection:
            found: int | None = await connection.scalar(text("select 2 * cast(:number as int)"), {"number": number})
            return found

    for _ in range(20):
        found = await asyncio.gather(
            *(database.fetch("select %(n)s::int as n", {"n": number}) for number in range(10)),
            *(database.fetch("select %(n)s::int + 100 as n", {"n": number}) for number in range(10)),
        )
        assert [row["n"] for (row,) in found] == [*range(10), *range(100, 110)]
        assert await asyncio.gather(*(by_engine(number) for number in range(10))) == [*range(0, 20, 2)]
    await database.close()
    await engine.dispose()


async def test_a_pooler_that_was_not_recognised_shows_itself_by_what_it_forgets(pooled_url: str) -> None:
    """Told to prepare, as where a pooler hands out the server's own process id. Each name exists on one session."""
    database = Database(pooled_url, pool_size=2, application="test", prepared_statements="on")
    for _ in range(5):
        for number in range(8):
            found = await asyncio.gather(
                *(database.fetch("select %(n)s::int as n", {"n": number}) for _ in range(2)),
            )
            assert found == [[{"n": number}]] * 2
    await database.close()


async def test_no_statement_is_ever_taken_for_another_one(pooled_url: str) -> None:
    """Two processes that prepare behind a pooler that nobody recognised."""
    one, other = (Database(pooled_url, pool_size=3, application="test", prepared_statements="on") for _ in range(2))
    for number in range(100):
        found = await asyncio.gather(
            *(one.fetch("select %(n)s::int as n", {"n": number}) for _ in range(3)),
            *(other.fetch("select %(n)s::int + 1000 as n", {"n": number}) for _ in range(3)),
        )
        assert [row["n"] for (row,) in found] == [number] * 3 + [number + 1000] * 3
    await one.close()
    await other.close()


async def test_migrations_run_through_it_and_again(pooled_url: str) -> None:
    for service in ("billing", "chat"):
        folder = SERVICES / service / "migrations"
        await asyncio.gather(*(asyncio.to_thread(upgrade, folder, service, pooled_url) for _ in range(3)))
    database = Database(pooled_url, pool_size=1, application="test")
    assert await database.fetch("select count(*) as tasks from chat.tasks") == [{"tasks": 0}]
    await database.close()


async def test_statements_are_prepared_where_no_pooler_is_between(postgres_url: str) -> None:
    prepared = "select count(*) as prepared from pg_prepared_statements"
    for told, expected in (("auto", True), ("on", True), ("off", False)):
        database = Database(postgres_url, pool_size=1, application="test", prepared_statements=told)  # type: ignore[arg-type]
        for _ in range(5):
            await database.fetch("select 1")
        (row,) = await database.fetch(prepared)
        assert bool(row["prepared"]) is expected
        await database.close()


async def test_migrations_lift_the_limits_of_their_role(postgres: Postgres) -> None:
    url = postgres.create_database("limited")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute("alter database limited set statement_timeout = '100ms'")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute("set statement_timeout = 0")
        await other.execute("select pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        migrating = asyncio.create_task(asyncio.to_thread(upgrade, SERVICES / "billing" / "migrations", "billing", url))
        await other.execute("select pg_sleep(0.5)")
    await migrating
    await asyncio.to_thread(postgres.drop_database, "limited")


def test_every_connection_has_the_same_bounds(postgres_url: str) -> None:
    """Whoever makes it: what a middlebox forgets or a dead host swallows is noticed by the kernel."""

    async def parameters_of_each() -> list[dict[str, str]]:
        database = Database(postgres_url, pool_size=1, application="test")
        engine = autocommit(create_engine(postgres_url, pool_size=1, application="test"))
        own, _ = await database._take()
        async with engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert isinstance(raw, Connection)
            found = [own.info.get_parameters(), raw.info.get_parameters()]
        await own.close()
        await engine.dispose()
        return found

    for parameters in asyncio.run(parameters_of_each()):
        assert int(parameters["tcp_user_timeout"]) <= 3_000
        assert parameters["keepalives"] == "1"
        assert "options" not in parameters
