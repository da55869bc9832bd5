"""Credits in: signups and grants, on Postgres."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.billing.domain import MAX_GRANT_NANO, Account, Entry, EntryKind, Grant
from services.billing.errors import IdempotencyKeyReused
from services.billing.store import Store
from services.billing.usecases import Billing
from services.kit.callers import Role, WorkspaceId
from services.kit.errors import InvalidArgument, NotFound, PermissionDenied
from services.kit.money import NANO
from tests.unit.billing.factories import billing_over, caller, new_workspace
from tests.unit.billing.ledger import read_books, read_only_books


async def grant(
    billing: Billing,
    workspace_id: WorkspaceId,
    amount_nano: int = NANO,
    *,
    role: Role = Role.OWNER,
    user_id: str = "alice",
    reason: str = "welcome",
    key: str | None = None,
) -> Entry:
    """One credit, as the owner Alice."""
    granted = Grant(workspace_id, user_id, amount_nano, reason, key)
    return await billing.grant_credits(caller(workspace_id, role, user_id), granted)


async def test_a_workspace_gets_its_signup_credits_once(store: Store, engine: AsyncEngine) -> None:
    billing, workspace = billing_over(store, signup_nano=10 * NANO), new_workspace()
    await asyncio.gather(*(billing.open_account(workspace) for _ in range(30)))
    books = await read_only_books(engine)
    assert books.balance_nano == books.folded_nano == 10 * NANO


async def test_a_workspace_that_was_seen_gets_no_signup_credits_when_they_are_introduced_later(
    billing: Billing, store: Store, engine: AsyncEngine
) -> None:
    workspace = new_workspace()
    await billing.open_account(workspace)
    await billing_over(store, signup_nano=NANO).open_account(workspace)
    assert (await read_only_books(engine)).balance_nano == 0


async def test_a_workspace_that_is_first_seen_by_a_grant_gets_its_signup_credits_too(
    store: Store, engine: AsyncEngine
) -> None:
    await grant(billing_over(store, signup_nano=10 * NANO), new_workspace())
    assert (await read_only_books(engine)).balance_nano == 11 * NANO


async def test_a_grant_adds_credits_and_says_who_gave_them_and_why(billing: Billing) -> None:
    workspace = new_workspace()
    entry = await grant(billing, workspace, 5, role=Role.ADMIN, reason="paid invoice 7")
    assert (entry.kind, entry.amount_nano, entry.user_id, entry.reason) == (
        EntryKind.GRANT,
        5,
        "alice",
        "paid invoice 7",
    )
    assert await billing.get_credits(caller(workspace, Role.VIEWER)) == Account(balance_nano=5)


@pytest.mark.parametrize(
    ("role", "refusal"), [(Role.MEMBER, PermissionDenied), (Role.VIEWER, PermissionDenied), (Role.GUEST, NotFound)]
)
async def test_only_who_administers_a_workspace_grants(
    billing: Billing, engine: AsyncEngine, role: Role, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        await grant(billing, new_workspace(), role=role)
    assert await read_books(engine) == []


@pytest.mark.parametrize("amount_nano", [0, -1, MAX_GRANT_NANO + 1, 2**63 - 1, -(2**63)])
async def test_an_amount_that_is_no_grant_is_invalid(billing: Billing, amount_nano: int) -> None:
    with pytest.raises(InvalidArgument):
        await grant(billing, new_workspace(), amount_nano)


async def test_a_reason_has_500_characters_at_most(billing: Billing) -> None:
    workspace = new_workspace()
    await grant(billing, workspace, reason="ü" * 500)
    with pytest.raises(InvalidArgument):
        await grant(billing, workspace, reason="x" * 501)


async def test_an_account_carries_no_more_than_fits(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    for _ in range(9):
        await grant(billing, workspace, MAX_GRANT_NANO)
    with pytest.raises(InvalidArgument, match="carry"):
        await grant(billing, workspace, 1)
    assert (await read_only_books(engine)).balance_nano == 9 * MAX_GRANT_NANO


async def test_a_repeated_key_is_the_first_grant(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    entries = await asyncio.gather(*(grant(billing, workspace, key="invoice-7") for _ in range(20)))
    assert len({entry.id for entry in entries}) == 1
    assert (await read_only_books(engine)).balance_nano == NANO


async def test_a_key_of_another_grant_is_refused(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await grant(billing, workspace, key="k")
    with pytest.raises(IdempotencyKeyReused):
        await grant(billing, workspace, 2 * NANO, key="k")
    with pytest.raises(IdempotencyKeyReused):
        await grant(billing, workspace, reason="another", key="k")
    with pytest.raises(IdempotencyKeyReused):
        await grant(billing, new_workspace(), key="k")
    assert sum(books.balance_nano for books in await read_books(engine)) == NANO


async def test_a_key_is_its_users_own_and_no_key_is_no_key(billing: Billing, engine: AsyncEngine) -> None:
    workspace = new_workspace()
    await grant(billing, workspace, key="k")
    await grant(billing, workspace, key="k", user_id="bob")
    await grant(billing, workspace)
    await grant(billing, workspace)
    assert (await read_only_books(engine)).balance_nano == 4 * NANO


async def test_the_balance_is_for_members(billing: Billing) -> None:
    workspace = new_workspace()
    assert await billing.get_credits(caller(workspace, Role.MEMBER)) == Account()
    with pytest.raises(NotFound):
        await billing.get_credits(caller(workspace, Role.GUEST))
