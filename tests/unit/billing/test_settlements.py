"""Paying holds, on Postgres."""

import asyncio

from sqlalchemy.ext.asyncio import AsyncEngine

from services.billing.domain import EntryKind, Hold, Settlement, Usage
from services.billing.usecases import Billing
from services.kit.money import NANO
from tests.unit.billing.factories import (
    INPUT,
    OUTPUT,
    WORST_CASE,
    fund,
    new_hold_id,
    new_workspace,
    request,
    settlement,
)
from tests.unit.billing.ledger import read_books, read_only_books
from tests.unit.billing.races import locked, until_waiting

PRICE = 1_000 * INPUT + 100 * OUTPUT


async def held(billing: Billing, **changes: object) -> Hold:
    """A hold on a funded workspace of its own."""
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    return await billing.hold_credits(request(workspace, **changes))


async def test_a_settlement_takes_the_price_of_the_usage_and_returns_the_rest(
    billing: Billing, engine: AsyncEngine
) -> None:
    hold = await held(billing)
    assert await billing.settle_holds([settlement(hold)]) == {hold.id: PRICE}
    books = await read_only_books(engine)
    assert (books.balance_nano, books.held_nano, books.charges) == (NANO - PRICE, 0, 1)


async def test_a_settlement_takes_no_more_than_was_held(billing: Billing, engine: AsyncEngine) -> None:
    hold = await held(billing)
    assert await billing.settle_holds([settlement(hold, output_tokens=10**9)]) == {hold.id: WORST_CASE}
    assert (await read_only_books(engine)).balance_nano == NANO - WORST_CASE


async def test_a_repeated_settlement_returns_the_first_charge(billing: Billing, engine: AsyncEngine) -> None:
    hold = await held(billing)
    await billing.settle_holds([settlement(hold)])
    assert await billing.settle_holds([settlement(hold, output_tokens=1)]) == {hold.id: PRICE}
    assert (await read_only_books(engine)).balance_nano == NANO - PRICE


async def test_of_settlements_that_race_one_is_booked_and_all_learn_its_charge(
    billing: Billing, engine: AsyncEngine
) -> None:
    hold = await held(billing)
    async with locked(engine, "accounts", "workspace_id", hold.workspace_id):
        racing = asyncio.gather(
            *(billing.settle_holds([settlement(hold, output_tokens=number)]) for number in range(9)),
            billing.release_holds([hold.id]),
        )
        await until_waiting(engine, 9)
    *outcomes, _ = await racing
    (charge,) = {outcome[hold.id] for outcome in outcomes if outcome}
    books = await read_only_books(engine)
    assert (books.balance_nano, books.charges, books.held_nano) == (NANO - charge, int(charge > 0), 0)


async def test_batches_in_opposite_orders_do_not_lock_each_other_out(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    first, middle, last = [await billing.hold_credits(request(workspace)) for _ in range(3)]
    async with locked(engine, "holds", "id", middle.id):
        settling = [
            asyncio.create_task(billing.settle_holds([settlement(hold) for hold in batch]))
            for batch in ((first, middle, last), (last, middle, first))
        ]
        releasing = asyncio.create_task(billing.release_holds([last.id, middle.id, first.id]))
        await until_waiting(engine, 3)
    await asyncio.gather(releasing, *settling)
    assert (await read_only_books(engine)).open == 0


async def test_a_settlement_and_a_release_that_race_have_one_winner(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    holds = [await billing.hold_credits(request(workspace)) for _ in range(40)]
    settling = asyncio.gather(*(billing.settle_holds([settlement(hold)]) for hold in holds))
    releasing = asyncio.gather(*(billing.release_holds([hold.id]) for hold in reversed(holds)))
    charged = sum(outcome[hold.id] for hold, outcome in zip(holds, await settling, strict=True))
    await releasing
    books = await read_only_books(engine)
    assert (books.balance_nano, books.held_nano, books.open) == (NANO - charged, 0, 0)


async def test_a_settlement_after_the_release_charges_nothing(billing: Billing, engine: AsyncEngine) -> None:
    hold = await held(billing)
    await billing.release_holds([hold.id])
    assert await billing.settle_holds([settlement(hold)]) == {hold.id: 0}
    books = await read_only_books(engine)
    assert (books.balance_nano, books.charges) == (NANO, 0)


async def test_an_unknown_hold_is_charged_nothing(billing: Billing) -> None:
    unknown = new_hold_id()
    assert await billing.settle_holds([settlement(unknown)]) == {unknown: 0}


async def test_a_release_after_the_settlement_changes_nothing(billing: Billing, engine: AsyncEngine) -> None:
    hold = await held(billing)
    await billing.settle_holds([settlement(hold)])
    await billing.release_holds([hold.id])
    books = await read_only_books(engine)
    assert (books.balance_nano, books.held_nano, books.settled) == (NANO - PRICE, 0, 1)


async def test_usage_of_nothing_settles_the_hold_for_nothing(billing: Billing, engine: AsyncEngine) -> None:
    hold = await held(billing)
    assert await billing.settle_holds([Settlement(hold.id, Usage())]) == {hold.id: 0}
    books = await read_only_books(engine)
    assert (books.balance_nano, books.held_nano, books.settled) == (NANO, 0, 1)


async def test_a_providers_negative_usage_credits_nobody_and_stops_no_batch(
    billing: Billing, engine: AsyncEngine
) -> None:
    hold = await held(billing)
    charged = await billing.settle_holds([settlement(hold, input_tokens=-(10**9), output_tokens=-1)])
    assert charged == {hold.id: 0}
    assert (await read_only_books(engine)).balance_nano == NANO


async def test_a_mixed_batch_settles_what_is_open(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    opened, settled, released = [await billing.hold_credits(request(workspace)) for _ in range(3)]
    await billing.settle_holds([settlement(settled, output_tokens=0)])
    await billing.release_holds([released.id])
    unknown = new_hold_id()
    batch = [settlement(opened), settlement(settled), settlement(released), settlement(unknown), settlement(opened)]
    assert await billing.settle_holds(batch) == {
        opened.id: PRICE,
        settled.id: 1_000 * INPUT,
        released.id: 0,
        unknown: 0,
    }
    assert (await read_only_books(engine)).held_nano == 0


async def test_an_empty_batch_settles_nothing(billing: Billing) -> None:
    assert await billing.settle_holds([]) == {}


async def test_the_rates_are_those_of_the_hold_whatever_the_list_says_by_then(billing: Billing) -> None:
    hold = await held(billing, model="audio", kind=EntryKind.SPEECH, seconds=90.0)
    assert hold.amount_nano == 9_000_000
    charged = await billing.settle_holds([Settlement(hold.id, Usage(seconds=45.5))])
    assert charged == {hold.id: 4_550_000}


async def test_crossing_batches_over_the_same_workspaces_do_not_lock_each_other_out(
    billing: Billing, engine: AsyncEngine
) -> None:
    workspaces = [new_workspace() for _ in range(8)]
    for workspace in workspaces:
        await fund(billing, workspace, NANO)
    holds = [await billing.hold_credits(request(workspace)) for workspace in workspaces for _ in range(10)]
    rounds = [holds[start::10] for start in range(10)]
    await asyncio.gather(
        *(billing.settle_holds([settlement(hold) for hold in batch]) for batch in rounds),
        *(billing.settle_holds([settlement(hold) for hold in reversed(batch)]) for batch in rounds),
        *(billing.release_holds([hold.id for hold in holds[number::7]]) for number in range(7)),
        *(billing.hold_credits(request(workspace)) for workspace in workspaces for _ in range(5)),
    )
    for books in await read_books(engine):
        books.check()
        assert (books.held_nano, books.open) == (5 * WORST_CASE, 5)
