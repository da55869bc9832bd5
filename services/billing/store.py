"""Every statement on the tables of the schema `billing`.

A rule that decides a race is one conditional statement. Whoever locks more than one row locks accounts first, by id,
then holds: so two batches over the same workspaces wait for each other and never in a circle.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg.errors import UniqueViolation
from psycopg.types.numeric import Int8

from services.billing.domain import (
    MAX_BALANCE_NANO,
    Account,
    Charge,
    CreditUsage,
    Entry,
    EntryId,
    EntryKind,
    Grant,
    Hold,
    HoldId,
    HoldRequest,
    HoldState,
    HoldTerms,
    Rates,
    SessionId,
    Usage,
)
from services.billing.errors import IdempotencyKeyReused
from services.billing.metrics import AUDIO_SECONDS, CREDITS_CHARGED, HOLDS_RELEASED, HOLDS_SETTLED, TOKENS
from services.kit.callers import Caller, WorkspaceId
from services.kit.errors import InvalidArgument, InvalidCursor
from services.kit.ids import parse_id
from services.kit.money import NANO, Tier
from services.kit.paging import Page, PageQuery, page_of
from services.kit.postgres.pool import CHORE_SECONDS, Database

SWEEP_BATCH = 1_000
MAX_INT64 = 2**63 - 1
FIRST_ID, LAST_ID = UUID(int=0), UUID(int=2**128 - 1)

# Two holds on one account meet at its row: the second waits, then sees what the first has left, because the condition
# and the amount are computed again on the row's newest version. Two calls with one id meet at the primary key of
# holds: the later one fails as a whole, its account untouched, and is asked again, when it sees the first (or the
# tombstone that a release has put there).
HOLD: Final = """
    with account as (
        update billing.accounts
        set held_nano = held_nano + least(%(wanted_nano)s, balance_nano - held_nano)
        where workspace_id = %(workspace_id)s
            and balance_nano - held_nano >= %(least_nano)s
            and not exists (select from billing.holds where id = %(id)s)
        returning new.held_nano - old.held_nano as amount_nano
    ), hold as (
        insert into billing.holds (
            id, workspace_id, user_id, session_id, kind, provider, model, tiers, audio_nano_per_minute,
            input_tokens, max_output_tokens, amount_nano, state, expires_at
        )
        select
            %(id)s, %(workspace_id)s, %(user_id)s, cast(%(session_id)s as uuid), %(kind)s, %(provider)s, %(model)s,
            cast(%(tiers)s as jsonb), %(audio_nano_per_minute)s, %(input_tokens)s, %(max_output_tokens)s, amount_nano,
            'open', cast(%(expires_at)s as timestamptz)
        from account
        returning amount_nano
    )
    select
        (select amount_nano from hold) as made_nano,
        (select true from billing.holds where id = %(id)s) as exists,
        account.balance_nano,
        account.held_nano
    from (values (1)) as one left join billing.accounts as account on account.workspace_id = %(workspace_id)s
"""

FIND_HOLDS: Final = """
    select
        id, workspace_id, state, tiers, audio_nano_per_minute, input_tokens, max_output_tokens, amount_nano,
        charged_nano
    from billing.holds
    where id = any(%(ids)s)
"""

# The accounts are locked first; whoever comes second finds the holds ended and books nothing. Should that ever fail,
# the ledger's unique index on the hold does not.
SETTLE: Final = """
    with charge as (
        select *
        from unnest(
            cast(%(ids)s as uuid[]), cast(%(charged_nano)s as bigint[]), cast(%(input_tokens)s as bigint[]),
            cast(%(output_tokens)s as bigint[]), cast(%(seconds)s as float8[]), cast(%(estimated)s as boolean[])
        ) as charge (id, charged_nano, input_tokens, output_tokens, seconds, estimated)
    ), locked as (
        select workspace_id
        from billing.accounts
        where workspace_id = any(%(workspace_ids)s)
        order by workspace_id
        for no key update
    ), settled as (
        update billing.holds as hold
        set state = 'settled', charged_nano = charge.charged_nano, expires_at = null, ended_at = now()
        from charge
        where hold.id = charge.id and hold.state = 'open' and (select count(*) from locked) > 0
        returning hold.*
    ), entries as (
        insert into billing.ledger_entries (
            workspace_id, kind, debit_account, credit_account, amount_nano, hold_id, user_id, session_id, provider,
            model, input_tokens, output_tokens, seconds, estimated
        )
        select
            workspace_id, kind, 'workspace', 'usage', settled.charged_nano, id, user_id, session_id, provider,
            model, charge.input_tokens, charge.output_tokens, charge.seconds, charge.estimated
        from settled join charge using (id)
        order by id
    ), paid as (
        update billing.accounts as account
        set balance_nano = account.balance_nano - due.charged_nano, held_nano = account.held_nano - due.amount_nano
        from (
            select
                workspace_id, cast(sum(charged_nano) as bigint) as charged_nano,
                cast(sum(amount_nano) as bigint) as amount_nano
            from settled
            group by workspace_id
        ) as due
        where account.workspace_id = due.workspace_id
    )
    select id, kind, provider, model from settled
"""

# Comes before RELEASE, in a transaction of its own: after it no id is unknown, so a hold that was on its way has either
# been made, and is released next, or fails on the tombstone. In id order, so that two of these can't wait in a circle.
BURY: Final = """
    insert into billing.holds (id, state, ended_at)
    select id, 'released', now() from unnest(cast(%(ids)s as uuid[])) as id order by id
    on conflict (id) do nothing
"""

RELEASE: Final = """
    with found as materialized (
        select id, workspace_id from billing.holds where id = any(%(ids)s) and state = 'open'
    ), locked as (
        select workspace_id
        from billing.accounts
        where workspace_id in (select workspace_id from found)
        order by workspace_id
        for no key update
    ), released as (
        update billing.holds as hold
        set state = 'released', expires_at = null, ended_at = now()
        from found
        where hold.id = found.id and hold.state = 'open' and (select count(*) from locked) > 0
        returning hold.workspace_id, hold.amount_nano
    ), returned as (
        update billing.accounts as account
        set held_nano = account.held_nano - back.amount_nano
        from (
            select workspace_id, cast(sum(amount_nano) as bigint) as amount_nano from released group by workspace_id
        ) as back
        where account.workspace_id = back.workspace_id
    )
    select count(*) as released from released
"""

SUM_HELD: Final = "select coalesce(sum(held_nano), 0) as held_nano from billing.accounts where held_nano > 0"

FIND_EXPIRED: Final = """
    select id from billing.holds where expires_at <= now() and state = 'open' order by expires_at limit %(limit)s
"""

# Whoever inserts the account books its signup; a twin waits for the first and inserts nothing.
OPEN_ACCOUNT: Final = """
    with opened as (
        insert into billing.accounts (workspace_id, balance_nano)
        values (%(workspace_id)s, %(signup_nano)s)
        on conflict (workspace_id) do nothing
        returning workspace_id, balance_nano
    )
    insert into billing.ledger_entries (workspace_id, kind, debit_account, credit_account, amount_nano)
    select workspace_id, 'signup', 'signups', 'workspace', balance_nano from opened where balance_nano > 0
"""

FIND_ACCOUNT: Final = "select balance_nano, held_nano from billing.accounts where workspace_id = %(workspace_id)s"

# A twin with the same key waits at the unique index for the first, then inserts nothing and credits nothing.
GRANT: Final = """
    with account as (
        select workspace_id
        from billing.accounts
        where workspace_id = %(workspace_id)s and balance_nano <= %(max_balance_nano)s - %(amount_nano)s
        for no key update
    ), entry as (
        insert into billing.ledger_entries (
            workspace_id, kind, debit_account, credit_account, amount_nano, user_id, reason, idempotency_key
        )
        select
            workspace_id, 'grant', 'grants', 'workspace', %(amount_nano)s, %(user_id)s, %(reason)s,
            %(idempotency_key)s
        from account
        on conflict (user_id, idempotency_key) where idempotency_key is not null do nothing
        returning *
    ), credited as (
        update billing.accounts as account
        set balance_nano = account.balance_nano + entry.amount_nano
        from entry
        where account.workspace_id = entry.workspace_id
    )
    select * from entry
"""

FIND_GRANT: Final = """
    select * from billing.ledger_entries where user_id = %(user_id)s and idempotency_key = %(idempotency_key)s
"""

OLDER_ENTRIES: Final = """
    select * from billing.ledger_entries
    where workspace_id = %(workspace_id)s and id < %(position)s
    order by id desc limit %(limit)s
"""
NEWER_ENTRIES: Final = """
    select * from billing.ledger_entries
    where workspace_id = %(workspace_id)s and id > %(position)s
    order by id limit %(limit)s
"""
OLDER_OWN_CHARGES: Final = """
    select * from billing.ledger_entries
    where workspace_id = %(workspace_id)s and user_id = %(user_id)s and hold_id is not null and id < %(position)s
    order by id desc limit %(limit)s
"""
NEWER_OWN_CHARGES: Final = """
    select * from billing.ledger_entries
    where workspace_id = %(workspace_id)s and user_id = %(user_id)s and hold_id is not null and id > %(position)s
    order by id limit %(limit)s
"""
# By whether the caller sees its own charges only, and whether the page is read backwards.
ENTRIES: Final[Mapping[tuple[bool, bool], LiteralString]] = {
    (False, False): OLDER_ENTRIES,
    (False, True): NEWER_ENTRIES,
    (True, False): OLDER_OWN_CHARGES,
    (True, True): NEWER_OWN_CHARGES,
}

SUM_USAGE: Final = """
    select
        (
            select coalesce(sum(amount_nano), 0) from billing.ledger_entries
            where workspace_id = any(%(workspace_ids)s) and kind in ('grant', 'signup')
        ) as limit_nano,
        (
            select coalesce(sum(amount_nano), 0) from billing.ledger_entries
            where workspace_id = any(%(workspace_ids)s) and user_id = %(user_id)s and kind not in ('grant', 'signup')
        ) as cost_nano
"""


class Store:
    """Every method is one statement, and one transaction, unless its docstring says otherwise."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_account(self, workspace_id: WorkspaceId, *, signup_nano: int) -> None:
        """Open the account, unless there is one, and book its signup credits."""
        await self._database.fetch(OPEN_ACCOUNT, {"workspace_id": workspace_id, "signup_nano": Int8(signup_nano)})

    async def find_account(self, workspace_id: WorkspaceId) -> Account | None:
        """The workspace's credits."""
        for row in await self._database.fetch(FIND_ACCOUNT, {"workspace_id": workspace_id}):
            return Account(row["balance_nano"], row["held_nano"])
        return None

    async def hold(self, request: HoldRequest, terms: HoldTerms) -> Hold | Account:
        """Set credits aside. A repeated call reads and returns the first hold; the account, when it has too little."""
        parameters = _hold_parameters(request, terms)
        try:
            (row,) = await self._database.fetch(HOLD, parameters)
        except UniqueViolation:  # a twin, or a release, was a moment earlier: now its row is seen
            (row,) = await self._database.fetch(HOLD, parameters)
        if row["made_nano"] is not None:
            return Hold(
                id=request.id,
                workspace_id=request.workspace_id,
                state=HoldState.OPEN,
                rates=terms.rates,
                amount_nano=row["made_nano"],
                input_tokens=terms.input_tokens,
                max_output_tokens=terms.max_output_tokens,
            )
        if row["exists"]:
            return (await self.find_holds([request.id]))[request.id]
        return Account(row["balance_nano"] or 0, row["held_nano"] or 0)

    async def find_holds(self, ids: Collection[HoldId]) -> dict[HoldId, Hold]:
        """The holds that are known, tombstones included."""
        rows = await self._database.fetch(FIND_HOLDS, {"ids": list(ids)})
        return {hold.id: hold for hold in map(_to_hold, rows)}

    async def settle(self, charges: Sequence[Charge]) -> set[HoldId]:
        """Pay open holds, each with its entry of the ledger; returns those that were paid by this call."""
        paid = {row["id"]: row for row in await self._database.fetch(SETTLE, _settle_parameters(charges))}
        for charge in charges:
            if charge.hold_id in paid:
                _count(charge, **paid[charge.hold_id])
        return set(paid)

    async def release(self, ids: Collection[HoldId], *, bury_unknown: bool = True) -> int:
        """Give open holds back; unknown ids become tombstones, in a statement of their own. Returns how many were."""
        parameters = {"ids": list(ids)}
        if bury_unknown:
            await self._database.fetch(BURY, parameters)
        (row,) = await self._database.fetch(RELEASE, parameters)
        HOLDS_RELEASED.inc(row["released"])
        return int(row["released"])

    async def sum_held(self) -> int:
        """Nano-credits set aside in all accounts; reads them all."""
        (row,) = await self._database.fetch(SUM_HELD, seconds=CHORE_SECONDS)
        return int(row["held_nano"])

    async def find_expired(self) -> list[HoldId]:
        """Open holds past their time, oldest first, at most SWEEP_BATCH."""
        rows = await self._database.fetch(FIND_EXPIRED, {"limit": SWEEP_BATCH}, seconds=CHORE_SECONDS)
        return [row["id"] for row in rows]

    async def grant(self, grant: Grant) -> Entry:
        """Add credits to an open account. A repeated call returns the first entry, in a second statement."""
        parameters = {
            "workspace_id": grant.workspace_id,
            "user_id": grant.user_id,
            "amount_nano": Int8(grant.amount_nano),
            "reason": grant.reason,
            "idempotency_key": grant.idempotency_key,
            "max_balance_nano": Int8(MAX_BALANCE_NANO),
        }
        rows = await self._database.fetch(GRANT, parameters) or await self._database.fetch(FIND_GRANT, parameters)
        if not rows:
            raise InvalidArgument("The account can't carry that many credits.")
        entry = _to_entry(rows[0])
        if not _books(entry, grant):
            raise IdempotencyKeyReused
        return entry

    async def list_entries(self, caller: Caller, query: PageQuery) -> Page[Entry]:
        """The workspace's ledger, newest first: all of it for who administers it, else the caller's own charges."""
        parameters = {
            "workspace_id": caller.workspace_id,
            "user_id": caller.user_id,
            "position": _position(query),
            "limit": query.limit + 1,
        }
        rows = await self._database.fetch(ENTRIES[not caller.is_admin, query.backwards], parameters)
        return page_of(query, [_to_entry(row) for row in rows], lambda entry: str(entry.id))

    async def sum_usage(self, user_id: str, workspace_ids: Collection[WorkspaceId]) -> CreditUsage:
        """What the workspaces were given and what the user was charged in them."""
        parameters = {"user_id": user_id, "workspace_ids": list(workspace_ids)}
        (row,) = await self._database.fetch(SUM_USAGE, parameters)
        return CreditUsage(limit_nano=_clamped(row["limit_nano"]), cost_nano=_clamped(row["cost_nano"]))


def _clamped(total: Decimal) -> int:
    """A sum over many accounts may leave the 64 bits that each of them keeps within."""
    return min(int(total), MAX_INT64)


def _books(entry: Entry, grant: Grant) -> bool:
    """Whether the entry is this grant's."""
    booked = (entry.workspace_id, entry.amount_nano, entry.reason)
    return booked == (grant.workspace_id, grant.amount_nano, grant.reason)


def _position(query: PageQuery) -> UUID:
    if query.position is None:
        return FIRST_ID if query.backwards else LAST_ID
    position = parse_id(query.position)
    if position is None:
        raise InvalidCursor
    return position


# Int8, because psycopg otherwise sends the shortest type that fits: one prepared statement for each mix of sizes.
def _hold_parameters(request: HoldRequest, terms: HoldTerms) -> dict[str, Any]:
    return {
        "id": request.id,
        "workspace_id": request.workspace_id,
        "user_id": request.user_id,
        "session_id": request.session_id,
        "kind": request.kind.value,
        "provider": request.provider,
        "model": request.model,
        "tiers": _dump_tiers(terms.rates.tiers),
        "audio_nano_per_minute": Int8(terms.rates.audio_nano_per_minute),
        "input_tokens": Int8(terms.input_tokens),
        "max_output_tokens": Int8(terms.max_output_tokens),
        "wanted_nano": Int8(terms.wanted_nano),
        "least_nano": Int8(terms.least_nano),
        "expires_at": request.expires_at,
    }


def _settle_parameters(charges: Sequence[Charge]) -> dict[str, Any]:
    return {
        "ids": [charge.hold_id for charge in charges],
        "charged_nano": [Int8(charge.amount_nano) for charge in charges],
        "input_tokens": [Int8(charge.usage.input_tokens) for charge in charges],
        "output_tokens": [Int8(charge.usage.output_tokens) for charge in charges],
        "seconds": [charge.usage.seconds for charge in charges],
        "estimated": [charge.usage.estimated for charge in charges],
        "workspace_ids": list({charge.workspace_id for charge in charges}),
    }


def _dump_tiers(tiers: Iterable[Tier]) -> str:
    return json.dumps(
        [[tier.up_to_input_tokens, tier.input_nano_per_million, tier.output_nano_per_million] for tier in tiers]
    )


def _to_hold(row: Mapping[str, Any]) -> Hold:
    return Hold(
        id=HoldId(row["id"]),
        workspace_id=row["workspace_id"],
        state=HoldState(row["state"]),
        rates=Rates(tuple(Tier(*tier) for tier in row["tiers"]), row["audio_nano_per_minute"]),
        amount_nano=row["amount_nano"],
        charged_nano=row["charged_nano"],
        input_tokens=row["input_tokens"],
        max_output_tokens=row["max_output_tokens"],
    )


def _count(charge: Charge, *, id: HoldId, kind: str, provider: str, model: str) -> None:
    HOLDS_SETTLED.labels(kind).inc()
    CREDITS_CHARGED.labels(kind, provider, model).inc(charge.amount_nano / NANO)
    if kind == EntryKind.SPEECH:
        AUDIO_SECONDS.labels(provider, model).inc(charge.usage.seconds)
        return
    TOKENS.labels(provider, model, "input").inc(charge.usage.input_tokens)
    TOKENS.labels(provider, model, "output").inc(charge.usage.output_tokens)


def _to_entry(row: Mapping[str, Any]) -> Entry:
    charge = row["hold_id"] is not None
    usage = Usage(row["input_tokens"], row["output_tokens"], row["seconds"], row["estimated"]) if charge else None
    return Entry(
        id=EntryId(row["id"]),
        workspace_id=WorkspaceId(row["workspace_id"]),
        kind=EntryKind(row["kind"]),
        amount_nano=-row["amount_nano"] if charge else row["amount_nano"],
        created_at=row["created_at"],
        user_id=row["user_id"] or "",
        hold_id=HoldId(row["hold_id"]) if charge else None,
        session_id=SessionId(row["session_id"]) if row["session_id"] is not None else None,
        provider=row["provider"] or "",
        model=row["model"] or "",
        usage=usage,
        reason=row["reason"] or "",
    )
