"""The pool of single statements, and the engine, on servers and networks that end connections in every way."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from deploy.local.server import LOOPBACK, free_port
from services.kit.postgres.engine import autocommit, create_engine
from services.kit.postgres.errors import is_down
from services.kit.postgres.pool import Database
from tests.proxy import Proxy
from tests.servers import Postgres


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    """Two connections."""
    database = Database(postgres_url, pool_size=2, application="test")
    yield database
    await database.close()


async def test_a_statement_returns_its_rows_by_name(database: Database) -> None:
    rows = await database.fetch("select n, %(word)s as word from generate_series(1, 2) as n", {"word": "hi"})
    assert rows == [{"n": 1, "word": "hi"}, {"n": 2, "word": "hi"}]


async def test_a_statement_that_makes_no_rows_returns_none(database: Database) -> None:
    assert await database.fetch("set application_name = 'other'") == []


async def test_more_statements_than_connections_take_turns(database: Database) -> None:
    found = await asyncio.gather(*(database.fetch("select pg_backend_pid() as pid") for _ in range(50)))
    assert len({rows[0]["pid"] for rows in found}) == 2


async def test_a_failed_statement_leaves_the_connection_usable(database: Database) -> None:
    for _ in range(5):
        with pytest.raises(psycopg.errors.DivisionByZero) as failed:
            await database.fetch("select 1 / 0")
        assert not is_down(failed.value)
    assert await database.fetch("select 1 as one") == [{"one": 1}]


async def test_a_cancelled_statement_frees_its_place(database: Database) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await database.fetch("select pg_sleep(30)")
    assert await database.fetch("select 1 as one") == [{"one": 1}]


async def test_waiting_for_a_place_is_bounded_and_tells_that_the_database_is_out_of_reach(database: Database) -> None:
    busy = [asyncio.create_task(database.fetch("select pg_sleep(30)")) for _ in range(2)]
    await asyncio.sleep(0)  # they start, and take both places
    with pytest.raises(psycopg.OperationalError) as failed:
        await database.fetch("select 1")
    assert is_down(failed.value)
    for task in busy:
        task.cancel()
    await asyncio.wait(busy)
    assert await database.fetch("select 1 as one") == [{"one": 1}]


async def kill_sessions_of(url: str, application: str) -> None:
    """Have the server end what `application` has connected, and wait until it has."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = %s",
            (f"backendai-{application}",),
        )


async def test_idle_connections_that_the_server_ended_are_not_noticed_by_callers(
    database: Database, postgres_url: str
) -> None:
    await asyncio.gather(*(database.fetch("select pg_sleep(0.1)") for _ in range(2)))
    await kill_sessions_of(postgres_url, "test")
    assert await asyncio.gather(*(database.fetch("select 1 as one") for _ in range(2))) == [[{"one": 1}]] * 2


async def test_a_statement_that_was_running_when_its_connection_ended_is_not_sent_again(
    database: Database, postgres_url: str
) -> None:
    await database.fetch("create sequence if not exists sent")
    running = asyncio.create_task(database.fetch("select nextval('sent'), pg_sleep(2)"))
    before = await wait_for_sleep(postgres_url)
    await kill_sessions_of(postgres_url, "test")
    with pytest.raises(psycopg.OperationalError) as failed:
        await running
    assert is_down(failed.value)
    assert await database.fetch("select last_value from sent") == before
    await database.fetch("drop sequence sent")


async def wait_for_sleep(url: str) -> list[dict[str, int]]:
    """Once a statement sleeps: what the sequence `sent` says."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row) as other:
        while True:
            sleeping = await other.execute("select 1 from pg_stat_activity where wait_event = 'PgSleep'")
            if await sleeping.fetchone():
                return await (await other.execute("select last_value from sent")).fetchall()


async def test_the_servers_limit_on_idle_sessions_is_not_noticed_by_callers(postgres: Postgres) -> None:
    url = postgres.create_database("impatient")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute("alter database impatient set idle_session_timeout = '300ms'")
    database = Database(url, pool_size=3, application="impatient")
    engine = create_engine(url, pool_size=2, application="impatient-engine")
    for _ in range(3):
        await asyncio.gather(*(database.fetch("select pg_sleep(0.05)") for _ in range(3)), sleep_on(engine))
        await until_no_session_of(postgres.url_of("postgres"), "impatient", "impatient-engine")
    await database.close()
    await engine.dispose()
    postgres.drop_database("impatient")


async def sleep_on(engine: AsyncEngine) -> None:
    """A statement by the engine."""
    async with autocommit(engine).connect() as connection:
        await connection.execute(text("select pg_sleep(0.05)"))


async def until_no_session_of(url: str, *applications: str) -> None:
    """Wait until the server has ended them."""
    names = [f"backendai-{application}" for application in applications]
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other, asyncio.timeout(10):
        while True:
            found = await other.execute("select 1 from pg_stat_activity where application_name = any(%s)", (names,))
            if await found.fetchone() is None:
                return
            await asyncio.sleep(0.02)


async def test_idle_connections_that_a_middlebox_forgot_cost_a_second_and_no_error(postgres: Postgres) -> None:
    async with Proxy(postgres.port, forgets_after=1.1) as proxy:
        url = proxy.url_of(postgres.url_of("postgres"))
        database = Database(url, pool_size=3, application="forgotten")
        engine = create_engine(url, pool_size=2, application="forgotten")
        await asyncio.gather(*(database.fetch("select pg_sleep(0.05)") for _ in range(3)), sleep_on(engine))
        await asyncio.sleep(1.2)  # the middlebox's time, which is all that is under test
        started_at = time.monotonic()
        await asyncio.gather(*(database.fetch("select pg_sleep(0.05)") for _ in range(3)), sleep_on(engine))
        assert time.monotonic() - started_at < 2
        assert proxy.forgotten >= 2
        await database.close()
        await engine.dispose()


async def test_nobody_waits_longer_than_three_seconds_for_a_connection_that_is_cut_off_under_way(
    postgres: Postgres,
) -> None:
    async with Proxy(postgres.port) as proxy:
        url = proxy.url_of(postgres.url_of("postgres"))
        database = Database(url, pool_size=2, application="cut")
        engine = create_engine(url, pool_size=2, application="cut")
        await asyncio.gather(*(database.fetch("select pg_sleep(0.05)") for _ in range(2)), sleep_on(engine))
        proxy.forget()
        started_at = time.monotonic()
        for outcome in await asyncio.gather(
            *(database.fetch("select 1") for _ in range(2)), sleep_on(engine), return_exceptions=True
        ):
            assert isinstance(outcome, Exception)
            assert is_down(outcome)
        assert time.monotonic() - started_at < 3.4
        assert await database.fetch("select 1 as one") == [{"one": 1}]
        await sleep_on(engine)
        await database.close()
        await engine.dispose()


async def test_a_statement_that_takes_too_long_is_cancelled_at_the_server(
    database: Database, postgres_url: str
) -> None:
    started_at = time.monotonic()
    with pytest.raises(psycopg.OperationalError):
        await database.fetch("select pg_sleep(30)", seconds=1)
    assert time.monotonic() - started_at < 1.5
    await until_no_session_of(postgres_url, "test")
    assert await database.fetch("select 1 as one") == [{"one": 1}]


async def test_a_server_that_takes_no_writes_any_more_is_left_for_the_one_that_does(postgres: Postgres) -> None:
    """As after a failover: the connections that are open lead to what is a standby now."""
    url = postgres.create_database("demoted")
    database = Database(url, pool_size=2, application="demoted")
    engine = create_engine(url, pool_size=1, application="demoted")
    await database.fetch("create table things (id int)")
    await database.fetch("set session characteristics as transaction read only")
    assert await database.fetch("insert into things values (1) returning id") == [{"id": 1}]
    async with autocommit(engine).connect() as connection:
        await connection.execute(text("set session characteristics as transaction read only"))
    insert = text("insert into things values (2)")
    with pytest.raises(DBAPIError) as failed:
        async with engine.begin() as connection:
            await connection.execute(insert)
    assert is_down(failed.value)
    async with engine.begin() as connection:
        await connection.execute(insert)
    await database.close()
    await engine.dispose()
    postgres.drop_database("demoted")


async def test_times_are_utc_whatever_the_server_thinks_of_time_zones(postgres: Postgres) -> None:
    url = postgres.create_database("elsewhere")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute("alter database elsewhere set timezone = 'Asia/Kolkata'")
    database = Database(url, pool_size=1, application="elsewhere")
    engine = create_engine(url, pool_size=1, application="elsewhere")
    for _ in range(4):  # the driver reads prepared statements in another way
        (row,) = await database.fetch("select timestamptz '2026-01-01 00:00:00.5+00' as at")
        assert row["at"].isoformat() == "2026-01-01T00:00:00.500000+00:00"
        async with engine.connect() as connection:
            at = await connection.scalar(text("select timestamptz '2026-01-01 00:00+00'"))
            assert at is not None
            assert at.isoformat() == "2026-01-01T00:00:00+00:00"
    await database.close()
    await engine.dispose()
    postgres.drop_database("elsewhere")


async def test_of_several_hosts_one_that_answers_is_found_in_time(postgres: Postgres) -> None:
    """One refuses, one is switched off; the third is the server."""
    silent = socket.create_server((LOOPBACK, 0))
    silent_port = silent.getsockname()[1]
    given = conninfo_to_dict(postgres.url_of("postgres"))
    hosts = f"{LOOPBACK}:{silent_port},{LOOPBACK}:{free_port()},{given['host']}:{given['port']}"
    database = Database(
        f"postgresql://{given['user']}:{given['password']}@{hosts}/postgres", pool_size=1, application="several"
    )
    started_at = time.monotonic()
    assert await database.fetch("select pg_is_in_recovery() as standby") == [{"standby": False}]
    assert time.monotonic() - started_at < 1.5
    await database.close()
    silent.close()


async def test_a_server_that_is_not_there_is_told_at_once() -> None:
    database = Database(f"postgresql://127.0.0.1:{free_port()}/x", pool_size=1, application="test")
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError) as failed:
            await database.fetch("select 1")
        assert is_down(failed.value)
