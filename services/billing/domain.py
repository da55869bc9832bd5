"""The values and rules of money: pure, no clock, no I/O. Amounts are nano-credits."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import NewType
from uuid import UUID

from services.billing.errors import PriceUnknown
from services.kit.callers import WorkspaceId
from services.kit.errors import InvalidArgument
from services.kit.money import NANO, Tier, output_tokens_for, token_cost
from services.kit.text import check_text

HoldId = NewType("HoldId", UUID)
SessionId = NewType("SessionId", UUID)
EntryId = NewType("EntryId", UUID)

LEAST_OUTPUT_TOKENS = 256
"""An answer that can't be this long is not worth starting."""
MAX_AUDIO_SECONDS = 24 * 60 * 60
MAX_TOKENS = 2**48
"""More than anyone has consumed; a provider's figure above it is nonsense."""
MAX_GRANT_NANO = 1_000_000_000 * NANO
MAX_BALANCE_NANO = 9 * MAX_GRANT_NANO
"""What an account can carry: just under the largest 64-bit integer."""
MAX_REASON_CHARACTERS = 500
SECONDS_PER_MINUTE = 60


class EntryKind(StrEnum):
    """Why credits moved."""

    CHAT = "chat"
    SPEECH = "speech"
    TRANSLATE = "translate"
    GRANT = "grant"
    SIGNUP = "signup"


CHARGE_KINDS = (EntryKind.CHAT, EntryKind.SPEECH, EntryKind.TRANSLATE)
CREDIT_KINDS = (EntryKind.GRANT, EntryKind.SIGNUP)


class HoldState(StrEnum):
    """An open hold ends once: it is paid from or given back."""

    OPEN = "open"
    SETTLED = "settled"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call consumed. A provider's nonsense (negative, endless) counts as nothing rather than stop a batch."""

    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    estimated: bool = False

    def sane(self) -> "Usage":
        """The same with every figure in its range."""
        return Usage(
            input_tokens=min(max(self.input_tokens, 0), MAX_TOKENS),
            output_tokens=min(max(self.output_tokens, 0), MAX_TOKENS),
            seconds=min(max(self.seconds, 0.0), float(MAX_AUDIO_SECONDS)) if math.isfinite(self.seconds) else 0.0,
            estimated=self.estimated,
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """What a hold is paid by: token prices by prompt size, or a price per minute of audio."""

    tiers: tuple[Tier, ...] = ()
    audio_nano_per_minute: int = 0

    def cost(self, usage: Usage) -> int:
        """Nano-credits of a call, rounded up once."""
        if self.tiers:
            return token_cost(self.tiers, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
        return audio_cost(self.audio_nano_per_minute, usage.seconds)


def audio_cost(nano_per_minute: int, seconds: float) -> int:
    """Nano-credits of that much audio, rounded up once. The seconds count as they are written: 0.1 is a tenth."""
    return math.ceil(Decimal(str(seconds)) * nano_per_minute / SECONDS_PER_MINUTE)


@dataclass(frozen=True, slots=True)
class Price:
    """One model of the price list."""

    provider: str
    model: str
    context_window_tokens: int
    max_output_tokens: int
    rates: Rates
    priced_on: date
    source: str
    applies_from: date = date.min


class PriceList:
    """Every model that can be paid for. A model has one price at a time; a later one may be known in advance."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_model: dict[tuple[str, str], list[Price]] = {}
        for price in sorted(prices, key=lambda price: price.applies_from, reverse=True):
            self._by_model.setdefault((price.provider, price.model), []).append(price)

    def get(self, provider: str, model: str, *, on: date) -> Price:
        """The price that applies on that day, else PriceUnknown."""
        for price in self._by_model.get((provider, model), ()):
            if price.applies_from <= on:
                return price
        raise PriceUnknown(provider=provider, model=model)

    def all(self, *, on: date) -> list[Price]:
        """What applies on that day, by provider and model."""
        current = (next((p for p in known if p.applies_from <= on), None) for known in self._by_model.values())
        return sorted((price for price in current if price), key=lambda price: (price.provider, price.model))


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """What a task asks to have set aside."""

    id: HoldId
    workspace_id: WorkspaceId
    user_id: str
    session_id: SessionId | None
    kind: EntryKind
    provider: str
    model: str
    input_tokens: int = 0
    max_output_tokens: int = 0
    seconds: float = 0.0
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class HoldTerms:
    """What a hold may be: as much as is available of `wanted_nano`, refused below `least_nano`."""

    rates: Rates
    wanted_nano: int
    least_nano: int
    input_tokens: int = 0
    max_output_tokens: int = 0


def terms_of(request: HoldRequest, price: Price, *, ceiling_nano: int) -> HoldTerms:
    """The terms of a hold at this price; the caller's own limit, or audio's length, is held in full or not at all."""
    if request.kind == EntryKind.SPEECH:
        return _audio_terms(request, price)
    return _token_terms(request, price, ceiling_nano)


def _audio_terms(request: HoldRequest, price: Price) -> HoldTerms:
    if not price.rates.audio_nano_per_minute:
        raise PriceUnknown("The model has no price per minute.", provider=price.provider, model=price.model)
    if not 0 < request.seconds <= MAX_AUDIO_SECONDS:
        raise InvalidArgument(f"seconds must be above 0 and at most {MAX_AUDIO_SECONDS}.", field="seconds")
    cost = audio_cost(price.rates.audio_nano_per_minute, request.seconds)
    return HoldTerms(Rates(audio_nano_per_minute=price.rates.audio_nano_per_minute), wanted_nano=cost, least_nano=cost)


def _token_terms(request: HoldRequest, price: Price, ceiling_nano: int) -> HoldTerms:
    tiers = price.rates.tiers
    if not tiers:
        raise PriceUnknown("The model has no price per token.", provider=price.provider, model=price.model)
    room = price.context_window_tokens - request.input_tokens
    if request.input_tokens < 0 or room < 1:
        detail = f"input_tokens must be between 0 and {price.context_window_tokens - 1}."
        raise InvalidArgument(detail, field="input_tokens")
    longest = min(price.max_output_tokens, room)
    if request.max_output_tokens > 0:
        longest = min(longest, request.max_output_tokens)
    worst = token_cost(tiers, input_tokens=request.input_tokens, output_tokens=longest)
    if request.max_output_tokens > 0:
        wanted = least = worst
    else:
        shortest = min(longest, LEAST_OUTPUT_TOKENS)
        least = token_cost(tiers, input_tokens=request.input_tokens, output_tokens=shortest)
        # The ceiling keeps one turn from setting everything aside. It is no reason to refuse a long prompt that the
        # workspace can pay: such a hold is its least.
        wanted = min(worst, max(ceiling_nano, least))
    return HoldTerms(Rates(tiers), wanted, least, input_tokens=request.input_tokens, max_output_tokens=longest)


@dataclass(frozen=True, slots=True)
class Hold:
    """Credits set aside for one task, with the rates it will be paid by."""

    id: HoldId
    workspace_id: WorkspaceId
    state: HoldState
    rates: Rates
    amount_nano: int
    charged_nano: int = 0
    input_tokens: int = 0
    max_output_tokens: int = 0

    @property
    def output_tokens(self) -> int:
        """The longest answer that the hold buys after its estimated prompt."""
        if not self.rates.tiers:
            return 0
        bought = output_tokens_for(self.rates.tiers, input_tokens=self.input_tokens, nano=self.amount_nano)
        return max(0, min(bought, self.max_output_tokens))

    def charge_for(self, usage: Usage) -> int:
        """What a settlement takes: the price of the usage, never more than was held."""
        return min(self.rates.cost(usage), self.amount_nano)


@dataclass(frozen=True, slots=True)
class Settlement:
    """One hold's end: what its task consumed."""

    hold_id: HoldId
    usage: Usage


@dataclass(frozen=True, slots=True)
class Charge:
    """A settlement with its price, ready to be booked."""

    hold_id: HoldId
    workspace_id: WorkspaceId
    usage: Usage
    amount_nano: int


@dataclass(frozen=True, slots=True)
class Account:
    """A workspace's credits: the fold of its ledger, and how much of it open holds set aside."""

    balance_nano: int = 0
    held_nano: int = 0

    @property
    def available_nano(self) -> int:
        """What a new hold can take."""
        return self.balance_nano - self.held_nano


@dataclass(frozen=True, slots=True)
class Grant:
    """Credits that an owner or admin adds."""

    workspace_id: WorkspaceId
    user_id: str
    amount_nano: int
    reason: str = ""
    idempotency_key: str | None = None

    def check(self) -> None:
        """InvalidArgument for an amount or a reason that can't be booked."""
        if not 0 < self.amount_nano <= MAX_GRANT_NANO:
            raise InvalidArgument("amount must be above 0 and at most 1,000,000,000 credits.", field="amount_nano")
        check_text(self.reason, field="reason", most=MAX_REASON_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the ledger. `amount_nano` is the workspace's side of it: negative for a charge."""

    id: EntryId
    workspace_id: WorkspaceId
    kind: EntryKind
    amount_nano: int
    created_at: datetime
    user_id: str = ""
    hold_id: HoldId | None = None
    session_id: SessionId | None = None
    provider: str = ""
    model: str = ""
    usage: Usage | None = None
    reason: str = ""

    @property
    def task_id(self) -> HoldId | None:
        """The chat task that was paid; a hold of another kind is no task."""
        return self.hold_id if self.kind == EntryKind.CHAT else None


@dataclass(frozen=True, slots=True)
class CreditUsage:
    """What a user's workspaces were given and what the user spent in them."""

    limit_nano: int
    cost_nano: int


def first_of_each(settlements: Sequence[Settlement]) -> dict[HoldId, Usage]:
    """The usage of each hold; of two settlements of one hold in one batch the first counts."""
    usages: dict[HoldId, Usage] = {}
    for settlement in settlements:
        usages.setdefault(settlement.hold_id, settlement.usage.sane())
    return usages
