"""Values with defaults for billing's tests: a small price list in round figures, and requests against it."""

from datetime import date
from uuid import UUID, uuid4

from services.billing.domain import (
    EntryKind,
    Grant,
    Hold,
    HoldId,
    HoldRequest,
    Price,
    PriceList,
    Rates,
    SessionId,
    Settlement,
    Usage,
)
from services.billing.store import Store
from services.billing.usecases import Billing
from services.kit.callers import Caller, Role, WorkspaceId
from services.kit.money import NANO, Tier

TODAY = date(2026, 11, 22)
INPUT, OUTPUT = 1_000, 4_000
"""Nano-credits of one input and one output token of the model `chat`."""
CONTEXT_TOKENS, MAX_OUTPUT_TOKENS = 10_000, 1_000
WORST_CASE = 1_000 * INPUT + MAX_OUTPUT_TOKENS * OUTPUT
"""What a default request may cost at most."""
LEAST = 1_000 * INPUT + 256 * OUTPUT
"""What a default request is refused below."""


def price(model: str = "chat", **changes: object) -> Price:
    """The default model, or one that differs from it."""
    values: dict[str, object] = {
        "provider": "fake",
        "model": model,
        "context_window_tokens": CONTEXT_TOKENS,
        "max_output_tokens": MAX_OUTPUT_TOKENS,
        "rates": Rates((Tier(None, INPUT * 1_000_000, OUTPUT * 1_000_000),)),
        "priced_on": TODAY,
        "source": "a test",
    }
    return Price(**(values | changes))  # type: ignore[arg-type]


PRICES = PriceList(
    [
        price(),
        price("brief", max_output_tokens=100),
        price("audio", rates=Rates(audio_nano_per_minute=6_000_000)),
        price("free", rates=Rates((Tier(None, 0, 0),))),
    ]
)


def new_workspace() -> WorkspaceId:
    """Nobody's yet."""
    return WorkspaceId(uuid4())


def new_hold_id() -> HoldId:
    """A task's id."""
    return HoldId(uuid4())


def request(workspace_id: WorkspaceId, **changes: object) -> HoldRequest:
    """A chat turn of 1,000 prompt tokens on the default model."""
    values: dict[str, object] = {
        "id": new_hold_id(),
        "workspace_id": workspace_id,
        "user_id": "alice",
        "session_id": SessionId(UUID(int=7)),
        "kind": EntryKind.CHAT,
        "provider": "fake",
        "model": "chat",
        "input_tokens": 1_000,
    }
    return HoldRequest(**(values | changes))  # type: ignore[arg-type]


def caller(workspace_id: WorkspaceId, role: Role = Role.OWNER, user_id: str = "alice") -> Caller:
    """An owner, unless told otherwise."""
    return Caller(user_id=user_id, workspace_id=workspace_id, role=role)


def billing_over(store: Store, *, signup_nano: int = 0, ceiling_nano: int = NANO, today: date = TODAY) -> Billing:
    """The use cases on the small price list, with a ceiling that nothing here reaches."""
    return Billing(store=store, prices=PRICES, today=lambda: today, signup_nano=signup_nano, ceiling_nano=ceiling_nano)


async def fund(billing: Billing, workspace_id: WorkspaceId, amount_nano: int) -> None:
    """Grant that much."""
    grant = Grant(workspace_id=workspace_id, user_id="alice", amount_nano=amount_nano)
    await billing.grant_credits(caller(workspace_id), grant)


def settlement(hold: Hold | HoldId, *, input_tokens: int = 1_000, output_tokens: int = 100) -> Settlement:
    """A turn's end; 1,000 + 100 tokens unless told otherwise."""
    hold_id = hold.id if isinstance(hold, Hold) else hold
    return Settlement(hold_id, Usage(input_tokens=input_tokens, output_tokens=output_tokens))
