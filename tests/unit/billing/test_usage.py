"""Who sees what of the ledger, page by page."""

import pytest

from services.billing.domain import Entry, EntryKind, Settlement, Usage
from services.billing.store import Store
from services.billing.usecases import Billing
from services.kit.callers import Role, WorkspaceId
from services.kit.errors import InvalidCursor, NotFound
from services.kit.money import NANO
from services.kit.paging import Page, PageQuery
from tests.unit.billing.factories import billing_over, caller, fund, new_workspace, request, settlement


async def charge(billing: Billing, workspace: WorkspaceId, user_id: str, output_tokens: int) -> None:
    """One paid turn."""
    hold = await billing.hold_credits(request(workspace, user_id=user_id))
    await billing.settle_holds([settlement(hold, input_tokens=0, output_tokens=output_tokens)])


async def page(
    billing: Billing,
    workspace: WorkspaceId,
    *,
    limit: int = 50,
    token: str = "",
    role: Role = Role.OWNER,
    user_id: str = "alice",
) -> Page[Entry]:
    """As an owner, unless told otherwise."""
    return await billing.list_usage(caller(workspace, role, user_id), PageQuery.parse(limit=limit, token=token))


async def test_the_ledger_is_listed_newest_first_with_what_was_paid_for(store: Store) -> None:
    billing, workspace = billing_over(store, signup_nano=NANO), new_workspace()
    await fund(billing, workspace, NANO)
    hold = await billing.hold_credits(request(workspace, user_id="bob"))
    await billing.settle_holds([Settlement(hold.id, Usage(10, 20, estimated=True))])
    turn, grant, signup = (await page(billing, workspace)).entries
    assert (turn.kind, turn.user_id, turn.task_id, turn.model) == (EntryKind.CHAT, "bob", hold.id, "chat")
    assert (turn.amount_nano, turn.usage) == (-(10 * 1_000 + 20 * 4_000), Usage(10, 20, estimated=True))
    assert (grant.kind, grant.user_id, grant.amount_nano, grant.usage) == (EntryKind.GRANT, "alice", NANO, None)
    assert (signup.kind, signup.user_id, signup.amount_nano, signup.task_id) == (EntryKind.SIGNUP, "", NANO, None)


async def test_speech_is_listed_in_seconds_and_has_no_task(billing: Billing) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    hold = await billing.hold_credits(
        request(workspace, kind=EntryKind.SPEECH, model="audio", seconds=60.0, session_id=None)
    )
    await billing.settle_holds([Settlement(hold.id, Usage(seconds=30.0))])
    entry = (await page(billing, workspace)).entries[0]
    assert (entry.kind, entry.usage, entry.amount_nano) == (EntryKind.SPEECH, Usage(seconds=30.0), -3_000_000)
    assert entry.task_id is None
    assert entry.session_id is None


@pytest.mark.parametrize("limit", [1, 4, 5, 25, 26])
async def test_pages_go_forwards_and_back_over_the_same_entries(billing: Billing, limit: int) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    for number in range(24):
        await charge(billing, workspace, "alice", number)
    everything = [entry.id for entry in (await page(billing, workspace, limit=200)).entries]
    assert len(everything) == 25

    pages = [await page(billing, workspace, limit=limit)]
    assert pages[0].previous_token == ""
    while pages[-1].next_token:
        pages.append(await page(billing, workspace, limit=limit, token=pages[-1].next_token))
    assert [entry.id for found in pages for entry in found.entries] == everything

    back = [pages[-1]]
    while back[-1].previous_token:
        back.append(await page(billing, workspace, limit=limit, token=back[-1].previous_token))
    assert [entry.id for found in reversed(back) for entry in found.entries] == everything
    assert [len(found.entries) for found in pages[:-1]] == [limit] * (len(pages) - 1)


async def test_an_entry_that_comes_meanwhile_shifts_no_page(billing: Billing) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    for number in range(5):
        await charge(billing, workspace, "alice", number)
    first = await page(billing, workspace, limit=3)
    await charge(billing, workspace, "alice", 9)
    second = await page(billing, workspace, limit=3, token=first.next_token)
    assert not {entry.id for entry in first.entries} & {entry.id for entry in second.entries}
    newer = await page(billing, workspace, limit=3, token=first.previous_token or f"before:{first.entries[0].id}")
    assert [entry.amount_nano for entry in newer.entries] == [-9 * 4_000]
    assert newer.next_token


@pytest.mark.parametrize("role", [Role.MEMBER, Role.VIEWER])
async def test_a_member_sees_its_own_charges_only(billing: Billing, role: Role) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    for user_id in ("alice", "bob", "alice", "bob", "bob"):
        await charge(billing, workspace, user_id, 1)
    own = await page(billing, workspace, role=role, user_id="alice", limit=1)
    assert own.next_token
    rest = await page(billing, workspace, role=role, user_id="alice", limit=1, token=own.next_token)
    assert not rest.next_token
    seen = [*own.entries, *rest.entries]
    assert [(entry.user_id, entry.kind) for entry in seen] == [("alice", EntryKind.CHAT)] * 2


async def test_nobody_sees_another_workspaces_ledger(billing: Billing) -> None:
    mine, theirs = new_workspace(), new_workspace()
    await fund(billing, theirs, NANO)
    await charge(billing, theirs, "alice", 1)
    assert (await page(billing, mine)).entries == ()
    theirs_token = f"after:{(await page(billing, theirs)).entries[0].id}"
    assert (await page(billing, mine, token=theirs_token)).entries == ()
    with pytest.raises(NotFound):
        await page(billing, theirs, role=Role.GUEST)


@pytest.mark.parametrize("token", ["after:", "after:x", "beside:" + "0" * 36, "garbage", "after:\0", "before:-1"])
async def test_a_token_that_the_list_did_not_give_out_is_refused(billing: Billing, token: str) -> None:
    with pytest.raises(InvalidCursor):
        await page(billing, new_workspace(), token=token)


async def test_the_limit_is_what_the_workspaces_were_given_and_the_cost_the_users_own(store: Store) -> None:
    billing = billing_over(store, signup_nano=10 * NANO)
    first, second, other = new_workspace(), new_workspace(), new_workspace()
    for workspace in (first, second, other):
        await fund(billing, workspace, NANO)
        await charge(billing, workspace, "alice", 2)
        await charge(billing, workspace, "bob", 3)
    usage = await billing.get_credit_usage("alice", [first, second, second])
    assert (usage.limit_nano, usage.cost_nano) == (22 * NANO, 2 * 2 * 4_000)


async def test_a_user_of_no_workspace_has_neither(billing: Billing) -> None:
    usage = await billing.get_credit_usage("alice", [])
    assert (usage.limit_nano, usage.cost_nano) == (0, 0)
    usage = await billing.get_credit_usage("alice", [new_workspace()])
    assert (usage.limit_nano, usage.cost_nano) == (0, 0)


async def test_totals_that_leave_64_bits_stop_there(billing: Billing) -> None:
    workspaces = [new_workspace() for _ in range(2)]
    for workspace in workspaces:
        for _ in range(6):
            await fund(billing, workspace, NANO * NANO)
    assert (await billing.get_credit_usage("alice", workspaces)).limit_nano == 2**63 - 1
