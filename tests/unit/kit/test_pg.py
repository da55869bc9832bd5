"""The pool of single statements."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from deploy.local.server import free_port
from services.kit.db import is_down
from services.kit.pg import Database


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


async def test_after_one_lost_connection_no_other_dead_one_is_tried(database: Database, postgres_url: str) -> None:
    both = await asyncio.gather(*(database.fetch("select pg_backend_pid() as pid, pg_sleep(0.1)") for _ in range(2)))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as other:
        for rows in both:
            await other.execute("select pg_terminate_backend(%s, 5000)", (rows[0]["pid"],))
    with pytest.raises(psycopg.OperationalError) as failed:
        await database.fetch("select 1")
    assert is_down(failed.value)
    assert await database.fetch("select 1 as one") == [{"one": 1}]


async def test_a_server_that_is_not_there_is_told_at_once() -> None:
    database = Database(f"postgresql://127.0.0.1:{free_port()}/x", pool_size=1, application="test")
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError) as failed:
            await database.fetch("select 1")
        assert is_down(failed.value)
