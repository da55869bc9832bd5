"""Identical work at the same time is done once, and belongs to nobody."""

import asyncio

import pytest

from services.kit.errors import Unavailable
from services.translate.flights import Flight, Flights


class Work:
    """Work that ends when it is told to, and counts how often it was begun and cut short."""

    def __init__(self) -> None:
        self.begun = self.cut_short = 0
        self.may_end, self.tidied = asyncio.Event(), asyncio.Event()
        self.tidied.set()
        self.keeps = False

    async def run(self, flight: Flight[str]) -> str:
        self.begun += 1
        if self.keeps:
            flight.keep()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cut_short += 1
            await self.tidied.wait()
            raise
        return "done"


async def begin(flights: Flights[str], work: Work, key: str = "k") -> "asyncio.Task[tuple[str, bool]]":
    """Somebody who asks, and is waiting by now."""
    task = asyncio.create_task(flights.join(key, work.run))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def leave(task: "asyncio.Task[tuple[str, bool]]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_asks_for_the_same_gets_the_same_result() -> None:
    flights, work = Flights[str](limit=9), Work()
    waiting = [await begin(flights, work) for _ in range(200)]
    work.may_end.set()
    results = await asyncio.gather(*waiting)
    assert work.begun == 1
    assert results == [("done", True)] + [("done", False)] * 199


async def test_other_work_goes_on_beside_it() -> None:
    flights, work = Flights[str](limit=9), Work()
    waiting = [await begin(flights, work, key) for key in "ab"]
    work.may_end.set()
    await asyncio.gather(*waiting)
    assert work.begun == 2


async def test_it_outlives_the_one_who_began_it() -> None:
    flights, work = Flights[str](limit=9), Work()
    first, second = await begin(flights, work), await begin(flights, work)
    await leave(first)
    work.may_end.set()
    assert await second == ("done", False)
    assert work.cut_short == 0


async def test_it_outlives_one_who_joined() -> None:
    flights, work = Flights[str](limit=9), Work()
    first, second = await begin(flights, work), await begin(flights, work)
    await leave(second)
    work.may_end.set()
    assert await first == ("done", True)


async def test_it_ends_when_the_last_one_has_left() -> None:
    flights, work = Flights[str](limit=9), Work()
    first, second = await begin(flights, work), await begin(flights, work)
    await leave(first)
    await leave(second)
    await flights.close()
    assert work.cut_short == 1


async def test_who_comes_after_the_last_has_left_begins_anew() -> None:
    flights, work = Flights[str](limit=9), Work()
    await leave(await begin(flights, work))
    again = await begin(flights, work)
    work.may_end.set()
    assert await again == ("done", True)
    assert work.begun == 2


async def test_who_comes_while_what_was_cut_short_tidies_up_begins_anew_as_well() -> None:
    flights, work = Flights[str](limit=9), Work()
    work.tidied.clear()
    await leave(await begin(flights, work))
    again = await begin(flights, work)
    work.may_end.set()
    assert await again == ("done", True)
    work.tidied.set()
    await flights.close()


async def test_what_is_kept_comes_to_its_end_though_everybody_has_left() -> None:
    flights, work = Flights[str](limit=9), Work()
    work.keeps = True
    await leave(await begin(flights, work))
    work.may_end.set()
    await flights.close()
    assert work.cut_short == 0


async def test_a_failure_reaches_everybody_and_is_not_kept() -> None:
    flights, begun = Flights[str](limit=9), 0

    async def fail(_: Flight[str]) -> str:
        nonlocal begun
        begun += 1
        raise ValueError("no")

    results = await asyncio.gather(*(flights.join("k", fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    with pytest.raises(ValueError, match="no"):
        await flights.join("k", fail)
    assert begun == 2


async def test_too_much_at_once_is_refused_and_joining_is_not() -> None:
    flights, work = Flights[str](limit=2), Work()
    waiting = [await begin(flights, work, key) for key in "aba"]
    with pytest.raises(Unavailable):
        await flights.join("c", work.run)
    work.may_end.set()
    await asyncio.gather(*waiting)
    assert await flights.join("c", work.run) == ("done", True)
