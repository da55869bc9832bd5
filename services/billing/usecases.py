"""What billing does, one function each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

import structlog

from services.billing.domain import (
    Account,
    Charge,
    CreditUsage,
    Entry,
    Grant,
    Hold,
    HoldId,
    HoldRequest,
    HoldState,
    Price,
    PriceList,
    Settlement,
    Usage,
    first_of_each,
    terms_of,
)
from services.billing.errors import HoldReleased, InsufficientCredits
from services.billing.metrics import HELD_CREDITS, HOLDS, HOLDS_EXPIRED
from services.billing.store import SWEEP_BATCH, Store
from services.kit.callers import Caller, WorkspaceId
from services.kit.errors import InvalidArgument
from services.kit.money import NANO, to_credits
from services.kit.paging import Page, PageQuery

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Billing:
    """The use cases, with what they are made of."""

    store: Store
    prices: PriceList
    today: Callable[[], date]
    signup_nano: int
    ceiling_nano: int

    def list_models(self) -> list[Price]:
        """What can be paid for today."""
        return self.prices.all(on=self.today())

    async def open_account(self, workspace_id: WorkspaceId) -> None:
        """Open the workspace's account and book its signup credits, once."""
        await self.store.open_account(workspace_id, signup_nano=self.signup_nano)

    async def get_credits(self, caller: Caller) -> Account:
        """The balance, for a member; NotFound for a guest."""
        caller.must_be_member()
        return await self.store.find_account(caller.workspace_id) or Account()

    async def check_credits(self, workspace_id: WorkspaceId) -> Account:
        """The account, when anything is available in it, else InsufficientCredits."""
        account = await self.store.find_account(workspace_id) or Account()
        if account.available_nano <= 0:
            raise _insufficient(account)
        return account

    async def hold_credits(self, request: HoldRequest) -> Hold:
        """Set credits aside for a task. A repeated call returns the first hold, whatever became of it but a release."""
        price = self.prices.get(request.provider, request.model, on=self.today())
        terms = terms_of(request, price, ceiling_nano=self.ceiling_nano)
        hold = await self.store.hold(request, terms)
        if isinstance(hold, Account):
            HOLDS.labels(request.kind, "insufficient_credits").inc()
            raise _insufficient(hold)
        if hold.state == HoldState.RELEASED:
            HOLDS.labels(request.kind, "hold_released").inc()
            raise HoldReleased
        if hold.workspace_id != request.workspace_id:
            raise InvalidArgument("hold_id names another workspace's hold.", field="hold_id")
        HOLDS.labels(request.kind, "held").inc()
        return hold

    async def settle_holds(self, settlements: Sequence[Settlement]) -> dict[HoldId, int]:
        """Pay each hold once and return what each was charged; 0 for one that is released or unknown."""
        usages = first_of_each(settlements)
        holds = await self.store.find_holds(usages)
        charges = [_charge(hold, usages[hold.id]) for hold in holds.values() if hold.state == HoldState.OPEN]
        paid = await self.store.settle(charges) if charges else set()
        if len(paid) < len(charges):  # somebody ended them meanwhile: what they were charged is known now
            holds |= await self.store.find_holds({charge.hold_id for charge in charges} - paid)
        charged = {charge.hold_id: charge.amount_nano for charge in charges if charge.hold_id in paid}
        unpaid = usages.keys() - charged.keys()
        for hold_id in unpaid:
            charged[hold_id] = holds[hold_id].charged_nano if hold_id in holds else 0
        if unknown := len(usages.keys() - holds.keys()):
            log.warning("unknown_holds_settled", count=unknown)
        return charged

    async def release_holds(self, ids: Sequence[HoldId]) -> None:
        """Give holds back unspent; an unknown one is remembered, so that a late hold under its id is refused."""
        if ids:
            await self.store.release(set(ids))

    async def release_expired(self) -> int:
        """Give back what is past its time, all of it; returns how many holds that were."""
        released = 0
        while expired := await self.store.find_expired():
            given_back = await self.store.release(expired, bury_unknown=False)
            HOLDS_EXPIRED.inc(given_back)
            released += given_back
            if len(expired) < SWEEP_BATCH:
                break
        return released

    async def tell_held(self) -> None:
        """Have the metrics say how much is set aside."""
        HELD_CREDITS.set(await self.store.sum_held() / NANO)

    async def grant_credits(self, caller: Caller, grant: Grant) -> Entry:
        """Add credits, for who administers the workspace; one user's key grants once."""
        caller.must_administer()
        grant.check()
        await self.open_account(grant.workspace_id)
        entry = await self.store.grant(grant)
        log.info("credits_granted", workspace_id=str(grant.workspace_id), amount_nano=grant.amount_nano)
        return entry

    async def list_usage(self, caller: Caller, query: PageQuery) -> Page[Entry]:
        """A page of the ledger for a member; NotFound for a guest."""
        caller.must_be_member()
        return await self.store.list_entries(caller, query)

    async def get_credit_usage(self, user_id: str, workspace_ids: Sequence[WorkspaceId]) -> CreditUsage:
        """What the workspaces were given and what the user spent in them."""
        return await self.store.sum_usage(user_id, set(workspace_ids))


def _charge(hold: Hold, usage: Usage) -> Charge:
    return Charge(hold.id, hold.workspace_id, usage, hold.charge_for(usage))


def _insufficient(account: Account) -> InsufficientCredits:
    return InsufficientCredits(available=to_credits(max(0, account.available_nano)))
