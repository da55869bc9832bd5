"""The ledger keeps what was written, and everything else folds to it."""

import asyncio
import random

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.billing.domain import HoldId, Settlement, Usage
from services.billing.errors import HoldReleased, InsufficientCredits
from services.billing.store import Store
from services.billing.usecases import Billing
from services.kit.callers import WorkspaceId
from services.kit.postgres.pool import Database
from tests.unit.billing.factories import WORST_CASE, billing_over, fund, new_hold_id, new_workspace, request
from tests.unit.billing.ledger import read_books


@pytest.mark.parametrize(
    "statement",
    [
        "update billing.ledger_entries set amount_nano = 0",
        "delete from billing.ledger_entries",
        "delete from billing.ledger_entries where false",
        "truncate billing.ledger_entries",
    ],
)
async def test_an_entry_can_not_be_changed_or_removed(billing: Billing, engine: AsyncEngine, statement: str) -> None:
    await fund(billing, new_workspace(), 1)
    with pytest.raises(DBAPIError, match="append-only"):
        async with engine.begin() as connection:
            await connection.execute(text(statement))


@pytest.mark.parametrize(
    "changes",
    ["held_nano = -1", "held_nano = balance_nano + 1", "balance_nano = -1"],
)
async def test_an_account_can_not_be_overdrawn_even_by_hand(
    billing: Billing, engine: AsyncEngine, changes: str
) -> None:
    await fund(billing, new_workspace(), 1)
    with pytest.raises(DBAPIError, match="accounts_"):
        async with engine.begin() as connection:
            await connection.execute(text(f"update billing.accounts set {changes}"))


async def test_a_storm_of_everything_at_once_keeps_the_books(database_url: str, engine: AsyncEngine) -> None:
    database = Database(database_url, pool_size=20, application="storm")
    storm = Storm(billing_over(Store(database), signup_nano=5 * WORST_CASE), random.Random(20261122))
    over = asyncio.Event()
    watching = asyncio.create_task(watch(engine, over))
    await asyncio.gather(*(storm.rage(80) for _ in range(16)))
    over.set()
    assert await watching > 10
    assert min(storm.counts.values()) > 0, storm.counts
    await storm.billing.release_holds(storm.ids)
    for books in await read_books(engine):
        books.check()
        assert (books.held_nano, books.open) == (0, 0)
    await database.close()


async def watch(engine: AsyncEngine, over: asyncio.Event) -> int:
    """Check the books in snapshot after snapshot while the storm lasts; how many were looked at."""
    looks = 0
    while not over.is_set():
        for books in await read_books(engine):
            books.check()
        looks += 1
    return looks


class Storm:
    """Random holds, settlements, releases, grants and openings over a few workspaces and ids, many of them repeated."""

    def __init__(self, billing: Billing, rng: random.Random) -> None:
        self.billing, self._rng = billing, rng
        self._workspaces = [new_workspace() for _ in range(4)]
        self._workspace_of: dict[HoldId, WorkspaceId] = {
            new_hold_id(): self._workspaces[number % 4] for number in range(150)
        }
        self.ids = list(self._workspace_of)
        self.counts = dict.fromkeys(("held", "refused", "released", "settled", "granted"), 0)

    async def rage(self, times: int) -> None:
        """Do that many random things, one after the other."""
        acts = (self._hold, self._hold, self._hold, self._settle, self._release, self._grant, self._open)
        for _ in range(times):
            await self._rng.choice(acts)()

    def _some_ids(self) -> list[HoldId]:
        return self._rng.sample(self.ids, self._rng.randrange(1, 12))

    async def _hold(self) -> None:
        id = self._rng.choice(self.ids)
        limit = self._rng.choice((0, 0, 500))
        try:
            await self.billing.hold_credits(request(self._workspace_of[id], id=id, max_output_tokens=limit))
            self.counts["held"] += 1
        except InsufficientCredits:
            self.counts["refused"] += 1
        except HoldReleased:
            self.counts["released"] += 1

    async def _settle(self) -> None:
        usages = [Usage(self._rng.randrange(2_000), self._rng.randrange(2_000)) for _ in range(12)]
        batch = [Settlement(id, usage) for id, usage in zip(self._some_ids(), usages, strict=False)]
        charged = await self.billing.settle_holds(batch)
        self.counts["settled"] += sum(charge > 0 for charge in charged.values())

    async def _release(self) -> None:
        await self.billing.release_holds(self._some_ids()[:2])

    async def _grant(self) -> None:
        await fund(self.billing, self._rng.choice(self._workspaces), self._rng.randrange(1, WORST_CASE))
        self.counts["granted"] += 1

    async def _open(self) -> None:
        await self.billing.open_account(self._rng.choice(self._workspaces))
