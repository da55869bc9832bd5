"""Holding and giving back, on Postgres."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.billing.domain import EntryKind, Hold, HoldId
from services.billing.errors import HoldReleased, InsufficientCredits, PriceUnknown
from services.billing.store import Store
from services.billing.usecases import Billing
from services.kit.errors import InvalidArgument
from services.kit.money import NANO
from tests.unit.billing.conftest import CountingDatabase
from tests.unit.billing.factories import (
    INPUT,
    LEAST,
    OUTPUT,
    WORST_CASE,
    billing_over,
    fund,
    new_hold_id,
    new_workspace,
    request,
    settlement,
)
from tests.unit.billing.ledger import read_books, read_only_books
from tests.unit.billing.races import locked, until_waiting


async def test_a_hold_sets_the_worst_case_aside(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    hold = await billing.hold_credits(request(workspace))
    assert (hold.amount_nano, hold.output_tokens) == (WORST_CASE, 1_000)
    books = await read_only_books(engine)
    assert (books.balance_nano, books.held_nano) == (NANO, WORST_CASE)


async def test_a_hold_takes_what_is_available_and_buys_fewer_tokens(billing: Billing) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, LEAST + 10 * OUTPUT + 1)
    hold = await billing.hold_credits(request(workspace))
    assert (hold.amount_nano, hold.output_tokens) == (LEAST + 10 * OUTPUT + 1, 266)


async def test_a_hold_is_refused_below_the_prompt_and_256_tokens(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, LEAST - 1)
    with pytest.raises(InsufficientCredits) as refused:
        await billing.hold_credits(request(workspace))
    assert refused.value.metadata == {"available": "0.002023999"}
    assert (await read_only_books(engine)).held_nano == 0
    await fund(billing, workspace, 1)
    assert (await billing.hold_credits(request(workspace))).amount_nano == LEAST


async def test_an_explicit_limit_is_held_in_full_or_refused(store: Store) -> None:
    billing, workspace = billing_over(store, ceiling_nano=1), new_workspace()
    full = 1_000 * INPUT + 300 * OUTPUT
    await fund(billing, workspace, full - 1)
    with pytest.raises(InsufficientCredits):
        await billing.hold_credits(request(workspace, max_output_tokens=300))
    await fund(billing, workspace, 1)
    hold = await billing.hold_credits(request(workspace, max_output_tokens=300))
    assert (hold.amount_nano, hold.output_tokens) == (full, 300)


async def test_a_workspace_that_nobody_opened_has_too_few_credits(billing: Billing) -> None:
    with pytest.raises(InsufficientCredits):
        await billing.hold_credits(request(new_workspace()))
    with pytest.raises(InsufficientCredits):
        await billing.check_credits(new_workspace())


async def test_the_check_asks_only_whether_anything_is_available(billing: Billing) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, WORST_CASE + 1)
    assert (await billing.check_credits(workspace)).available_nano == WORST_CASE + 1
    await billing.hold_credits(request(workspace))
    assert (await billing.check_credits(workspace)).available_nano == 1
    await billing.hold_credits(request(workspace, model="free"))
    await fund(billing, workspace, LEAST - 1)
    await billing.hold_credits(request(workspace))
    with pytest.raises(InsufficientCredits):
        await billing.check_credits(workspace)


async def test_an_unknown_price_is_refused(billing: Billing) -> None:
    with pytest.raises(PriceUnknown) as refused:
        await billing.hold_credits(request(new_workspace(), model="gpt-99"))
    assert refused.value.metadata == {"provider": "fake", "model": "gpt-99"}


async def test_a_second_hold_with_the_same_id_is_the_same_hold(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    first = await billing.hold_credits(request(workspace))
    again = await billing.hold_credits(request(workspace, id=first.id, input_tokens=1, max_output_tokens=5))
    assert again == first
    assert (await read_only_books(engine)).held_nano == WORST_CASE


async def test_a_hold_is_still_found_when_its_account_is_empty_by_now(billing: Billing) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, LEAST)
    first = await billing.hold_credits(request(workspace))
    assert (await billing.hold_credits(request(workspace, id=first.id))).amount_nano == LEAST


async def test_twins_that_race_make_one_hold(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    twin = request(workspace)
    async with locked(engine, "accounts", "workspace_id", workspace):
        racing = asyncio.gather(*(billing.hold_credits(twin) for _ in range(30)))
        await until_waiting(engine, 10)
    assert {hold.amount_nano for hold in await racing} == {WORST_CASE}
    assert (await read_only_books(engine)).held_nano == WORST_CASE


async def test_a_hold_that_waits_while_its_id_is_released_is_refused(billing: Billing, engine: AsyncEngine) -> None:
    workspace, late = new_workspace(), new_hold_id()
    await fund(billing, workspace, NANO)
    async with locked(engine, "accounts", "workspace_id", workspace):
        holding = asyncio.create_task(billing.hold_credits(request(workspace, id=late)))
        await until_waiting(engine, 1)
        await billing.release_holds([late])
    with pytest.raises(HoldReleased):
        await holding
    assert (await read_only_books(engine)).held_nano == 0


async def test_holds_that_race_for_the_last_credits_do_not_overdraw(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, 2 * LEAST + 5)
    async with locked(engine, "accounts", "workspace_id", workspace):
        wanted = (billing.hold_credits(request(workspace, max_output_tokens=256)) for _ in range(8))
        racing = asyncio.gather(*wanted, return_exceptions=True)
        await until_waiting(engine, 8)
    outcomes = await racing
    assert sum(isinstance(outcome, Hold) for outcome in outcomes) == 2
    books = await read_only_books(engine)
    assert (books.balance_nano - books.held_nano, books.open) == (5, 2)


async def test_another_workspace_can_not_take_over_a_hold(billing: Billing, engine: AsyncEngine) -> None:
    mine, theirs = new_workspace(), new_workspace()
    await fund(billing, mine, NANO)
    await fund(billing, theirs, NANO)
    hold = await billing.hold_credits(request(mine))
    with pytest.raises(InvalidArgument):
        await billing.hold_credits(request(theirs, id=hold.id))
    assert sorted(books.held_nano for books in await read_books(engine)) == [0, WORST_CASE]


async def test_of_200_holds_at_once_on_credit_for_exactly_ten_ten_are_made(
    billing: Billing, engine: AsyncEngine
) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, 10 * WORST_CASE)
    wanted = [request(workspace, max_output_tokens=1_000) for _ in range(200)]
    outcomes = await asyncio.gather(*(billing.hold_credits(one) for one in wanted), return_exceptions=True)
    assert sum(isinstance(outcome, Hold) for outcome in outcomes) == 10
    assert sum(isinstance(outcome, InsufficientCredits) for outcome in outcomes) == 190
    books = await read_only_books(engine)
    assert (books.held_nano, books.open) == (10 * WORST_CASE, 10)


async def test_a_hold_is_one_round_trip(billing: Billing, database: CountingDatabase) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, LEAST)
    before = database.statements
    await billing.hold_credits(request(workspace))
    assert database.statements == before + 1
    with pytest.raises(InsufficientCredits):
        await billing.hold_credits(request(workspace))
    assert database.statements == before + 2


async def test_a_batch_of_1000_settlements_is_two_round_trips(
    billing: Billing, database: CountingDatabase, engine: AsyncEngine
) -> None:
    workspaces = [new_workspace() for _ in range(5)]
    for workspace in workspaces:
        await fund(billing, workspace, 300 * WORST_CASE)
    batch = [await billing.hold_credits(request(workspaces[number % 5])) for number in range(1_000)]
    before = database.statements
    charged = await billing.settle_holds([settlement(hold) for hold in batch])
    assert database.statements == before + 2
    assert set(charged.values()) == {1_000 * INPUT + 100 * OUTPUT}
    for books in await read_books(engine):
        books.check()
        assert (books.held_nano, books.charges) == (0, 200)


async def test_released_credits_are_available_again(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, 3 * WORST_CASE)
    holds = [await billing.hold_credits(request(workspace)) for _ in range(3)]
    await billing.release_holds([hold.id for hold in holds[:2]])
    await billing.release_holds([hold.id for hold in holds[:2]])
    books = await read_only_books(engine)
    assert (books.balance_nano, books.held_nano, books.open) == (3 * WORST_CASE, WORST_CASE, 1)


async def test_a_released_id_can_not_be_held_again(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    hold = await billing.hold_credits(request(workspace))
    await billing.release_holds([hold.id])
    with pytest.raises(HoldReleased):
        await billing.hold_credits(request(workspace, id=hold.id))
    assert (await read_only_books(engine)).held_nano == 0


async def test_a_hold_that_arrives_after_its_release_is_refused(billing: Billing, engine: AsyncEngine) -> None:
    workspace, late = new_workspace(), new_hold_id()
    await fund(billing, workspace, NANO)
    await billing.release_holds([late])
    with pytest.raises(HoldReleased):
        await billing.hold_credits(request(workspace, id=late))
    assert (await read_only_books(engine)).held_nano == 0


async def test_a_hold_and_a_release_that_race_leave_nothing_held(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    ids = [new_hold_id() for _ in range(100)]

    async def hold(id: HoldId) -> bool:
        try:
            await billing.hold_credits(request(workspace, id=id))
        except HoldReleased:
            return False
        return True

    holding = [hold(id) for id in ids]
    releasing = [billing.release_holds(ids[start : start + 5]) for start in range(0, 100, 5)]
    await asyncio.gather(*holding, *releasing)
    books = await read_only_books(engine)
    assert (books.held_nano, books.open) == (0, 0)


async def test_releasing_nothing_is_allowed(billing: Billing) -> None:
    await billing.release_holds([])


async def test_a_hold_past_its_time_is_given_back_and_stays_so(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    past, future = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    audio = partial(request, workspace, model="audio", kind=EntryKind.SPEECH, seconds=60.0)
    expired = await billing.hold_credits(audio(expires_at=past))
    waiting = await billing.hold_credits(audio(expires_at=future))
    endless = await billing.hold_credits(audio())
    assert await billing.release_expired() == 1
    assert await billing.release_expired() == 0
    assert (await read_only_books(engine)).held_nano == waiting.amount_nano + endless.amount_nano
    assert await billing.settle_holds([settlement(expired)]) == {expired.id: 0}
    with pytest.raises(HoldReleased):
        await billing.hold_credits(audio(id=expired.id))


async def test_a_settled_hold_does_not_expire(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    hold = await billing.hold_credits(request(workspace, expires_at=datetime.now(UTC) - timedelta(hours=1)))
    charged = await billing.settle_holds([settlement(hold)])
    assert await billing.release_expired() == 0
    assert await billing.settle_holds([settlement(hold)]) == charged
    assert (await read_only_books(engine)).balance_nano == NANO - charged[hold.id]
