"""The tables of the Postgres schema `billing` and every statement on them. Needs PostgreSQL 18.

A rule that decides a race is one conditional statement. Whoever locks more than one row locks accounts first, by id,
then holds: so two batches over the same workspaces wait for each other and never in a circle.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg.types.numeric import Int8
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    MetaData,
    RowMapping,
    Select,
    Table,
    Text,
    TextClause,
    Uuid,
    bindparam,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.billing.domain import (
    CHARGE_KINDS,
    CREDIT_KINDS,
    MAX_BALANCE_NANO,
    Account,
    Caller,
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
    WorkspaceId,
)
from services.billing.errors import IdempotencyKeyReused
from services.kit.db import autocommit
from services.kit.errors import InvalidArgument, InvalidCursor
from services.kit.ids import parse_id
from services.kit.money import Tier
from services.kit.paging import Page, PageQuery, page_of

SCHEMA = "billing"
SWEEP_BATCH = 1_000

metadata = MetaData(schema=SCHEMA)
Moment = DateTime(timezone=True)
NOW = text("now()")
ZERO = text("0")

# Both amounts are folds kept beside what they fold: the balance of the ledger, the rest of the open holds. A statement
# that moves credits changes both sides, so they agree in every snapshot. Each turn updates its row twice: the free
# space lets the new version stay on the page.
accounts = Table(
    "accounts",
    metadata,
    Column("workspace_id", Uuid, primary_key=True),
    Column("balance_nano", BigInteger, nullable=False, server_default=ZERO),
    Column("held_nano", BigInteger, nullable=False, server_default=ZERO),
    Column("created_at", Moment, nullable=False, server_default=NOW),
    CheckConstraint("held_nano >= 0", name="accounts_held_check"),
    CheckConstraint("balance_nano - held_nano >= 0", name="accounts_available_check"),
    postgresql_with={"fillfactor": 50},
)

# A released id that was never held is a tombstone: it has no workspace, and a late hold can't take its place.
# `expires_at` is cleared at the end, so that the index holds nothing but what can still expire.
holds = Table(
    "holds",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("workspace_id", Uuid),
    Column("user_id", Text),
    Column("session_id", Uuid),
    Column("kind", Text),
    Column("provider", Text),
    Column("model", Text),
    Column("tiers", JSONB, nullable=False, server_default=text("'[]'")),
    Column("audio_nano_per_minute", BigInteger, nullable=False, server_default=ZERO),
    Column("input_tokens", BigInteger, nullable=False, server_default=ZERO),
    Column("max_output_tokens", BigInteger, nullable=False, server_default=ZERO),
    Column("amount_nano", BigInteger, nullable=False, server_default=ZERO),
    Column("charged_nano", BigInteger, nullable=False, server_default=ZERO),
    Column("state", Text, nullable=False),
    Column("expires_at", Moment),
    Column("created_at", Moment, nullable=False, server_default=NOW),
    Column("ended_at", Moment),
    CheckConstraint("state in ('open', 'settled', 'released')", name="holds_state_check"),
    CheckConstraint("state = 'released' or workspace_id is not null", name="holds_workspace_check"),
    CheckConstraint("charged_nano between 0 and amount_nano", name="holds_charged_check"),
    Index("holds_expires_at", "expires_at", postgresql_where=text("expires_at is not null")),
    postgresql_with={"fillfactor": 80},
)

# Append-only: a trigger refuses everything but inserts. Every entry moves `amount_nano` from its debit account to its
# credit account: from `grants` or `signups` to the workspace, and from the workspace to `usage`.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("uuidv7()")),
    Column("workspace_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("debit_account", Text, nullable=False),
    Column("credit_account", Text, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("hold_id", Uuid),
    Column("user_id", Text),
    Column("session_id", Uuid),
    Column("provider", Text),
    Column("model", Text),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("seconds", Double),
    Column("estimated", Boolean),
    Column("reason", Text),
    Column("idempotency_key", Text),
    Column("created_at", Moment, nullable=False, server_default=NOW),
    CheckConstraint("amount_nano >= 0", name="ledger_entries_amount_check"),
    CheckConstraint(
        "kind in ('chat', 'speech', 'translate') and hold_id is not null"
        " and debit_account = 'workspace' and credit_account = 'usage'"
        " or kind in ('grant', 'signup') and hold_id is null"
        " and debit_account = kind || 's' and credit_account = 'workspace'",
        name="ledger_entries_accounts_check",
    ),
    Index("ledger_entries_by_workspace", "workspace_id", "id"),
    Index("ledger_entries_by_user", "workspace_id", "user_id", "id", postgresql_include=["kind", "amount_nano"]),
    Index(
        "ledger_entries_credits",
        "workspace_id",
        postgresql_include=["amount_nano"],
        postgresql_where=text("kind in ('grant', 'signup')"),
    ),
    Index("ledger_entries_one_charge_a_hold", "hold_id", unique=True, postgresql_where=text("hold_id is not null")),
    Index("ledger_entries_one_signup", "workspace_id", unique=True, postgresql_where=text("kind = 'signup'")),
    Index(
        "ledger_entries_one_grant_a_key",
        "user_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key is not null"),
    ),
)


def _sql(statement: str) -> TextClause:
    return text(statement)


# Two holds on one account meet at its row: the second waits, then sees what the first has left, because the condition
# and the amount are computed again on the row's newest version. Two calls with one id meet at the primary key of
# holds: the later one fails as a whole, its account untouched, and is asked again, when it sees the first (or the
# tombstone that a release has put there).
HOLD = _sql("""
    with account as (
        update billing.accounts
        set held_nano = held_nano + least(cast(:wanted_nano as bigint), balance_nano - held_nano)
        where workspace_id = :workspace_id
            and balance_nano - held_nano >= :least_nano
            and not exists (select from billing.holds where id = :id)
        returning new.held_nano - old.held_nano as amount_nano
    ), hold as (
        insert into billing.holds (
            id, workspace_id, user_id, session_id, kind, provider, model, tiers, audio_nano_per_minute,
            input_tokens, max_output_tokens, amount_nano, state, expires_at
        )
        select
            :id, :workspace_id, :user_id, :session_id, :kind, :provider, :model, cast(:tiers as jsonb),
            :audio_nano_per_minute, :input_tokens, :max_output_tokens, amount_nano, 'open', :expires_at
        from account
        returning amount_nano
    )
    select
        hold.amount_nano as made_nano, account.balance_nano, account.held_nano, first.id, first.workspace_id,
        first.state, first.tiers, first.audio_nano_per_minute, first.input_tokens, first.max_output_tokens,
        first.amount_nano, first.charged_nano
    from (values (1)) as one
        left join hold on true
        left join billing.holds as first on first.id = :id
        left join billing.accounts as account on account.workspace_id = :workspace_id
""").bindparams(
    bindparam("id", type_=Uuid),
    bindparam("workspace_id", type_=Uuid),
    bindparam("session_id", type_=Uuid),
    bindparam("expires_at", type_=Moment),
)

FIND_HOLDS = _sql("""
    select
        id, workspace_id, state, tiers, audio_nano_per_minute, input_tokens, max_output_tokens, amount_nano,
        charged_nano
    from billing.holds
    where id = any(:ids)
""").bindparams(bindparam("ids", type_=ARRAY(Uuid)))

# The accounts are locked first; whoever comes second finds the holds ended and books nothing. Should that ever fail,
# the ledger's unique index on the hold does not.
SETTLE = _sql("""
    with charge as (
        select *
        from unnest(
            cast(:ids as uuid[]), cast(:charged_nano as bigint[]), cast(:input_tokens as bigint[]),
            cast(:output_tokens as bigint[]), cast(:seconds as float8[]), cast(:estimated as boolean[])
        ) as charge (id, charged_nano, input_tokens, output_tokens, seconds, estimated)
    ), locked as (
        select workspace_id
        from billing.accounts
        where workspace_id = any(:workspace_ids)
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
    select id from settled
""").bindparams(bindparam("ids", type_=ARRAY(Uuid)), bindparam("workspace_ids", type_=ARRAY(Uuid)))

# Comes before RELEASE, in a transaction of its own: after it no id is unknown, so a hold that was on its way has either
# been made, and is released next, or fails on the tombstone. In id order, so that two of these can't wait in a circle.
BURY = _sql("""
    insert into billing.holds (id, state, ended_at)
    select id, 'released', now() from unnest(cast(:ids as uuid[])) as id order by id
    on conflict (id) do nothing
""").bindparams(bindparam("ids", type_=ARRAY(Uuid)))

RELEASE = _sql("""
    with found as materialized (
        select id, workspace_id from billing.holds where id = any(:ids) and state = 'open'
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
    select count(*) from released
""").bindparams(bindparam("ids", type_=ARRAY(Uuid)))

EXPIRED = (
    select(holds.c.id)
    .where(holds.c.expires_at <= func.now(), holds.c.state == HoldState.OPEN.value)
    .order_by(holds.c.expires_at)
    .limit(SWEEP_BATCH)
)

# Whoever inserts the account books its signup; a twin waits for the first and inserts nothing.
OPEN_ACCOUNT = _sql("""
    with opened as (
        insert into billing.accounts (workspace_id, balance_nano)
        values (:workspace_id, :signup_nano)
        on conflict (workspace_id) do nothing
        returning workspace_id, balance_nano
    )
    insert into billing.ledger_entries (workspace_id, kind, debit_account, credit_account, amount_nano)
    select workspace_id, 'signup', 'signups', 'workspace', balance_nano from opened where balance_nano > 0
""").bindparams(bindparam("workspace_id", type_=Uuid), bindparam("signup_nano", type_=BigInteger))

# A twin with the same key waits at the unique index for the first, then inserts nothing and credits nothing.
GRANT = _sql("""
    with account as (
        select workspace_id
        from billing.accounts
        where workspace_id = :workspace_id and balance_nano <= :max_balance_nano - :amount_nano
        for no key update
    ), entry as (
        insert into billing.ledger_entries (
            workspace_id, kind, debit_account, credit_account, amount_nano, user_id, reason, idempotency_key
        )
        select workspace_id, 'grant', 'grants', 'workspace', :amount_nano, :user_id, :reason, :idempotency_key
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
""").bindparams(
    bindparam("workspace_id", type_=Uuid),
    bindparam("amount_nano", type_=BigInteger),
    bindparam("max_balance_nano", type_=BigInteger),
)

FIND_GRANT = select(ledger_entries).where(
    ledger_entries.c.user_id == bindparam("user_id"), ledger_entries.c.idempotency_key == bindparam("idempotency_key")
)

FIND_ACCOUNT = select(accounts.c.balance_nano, accounts.c.held_nano).where(
    accounts.c.workspace_id == bindparam("workspace_id")
)

CREDIT_USAGE = select(
    select(func.coalesce(func.sum(ledger_entries.c.amount_nano), 0))
    .where(
        ledger_entries.c.workspace_id == func.any(bindparam("workspace_ids", type_=ARRAY(Uuid))),
        # Spelled out, so that the partial index is known to hold all of them.
        text("kind in ('grant', 'signup')"),
    )
    .scalar_subquery()
    .label("limit_nano"),
    select(func.coalesce(func.sum(ledger_entries.c.amount_nano), 0))
    .where(
        ledger_entries.c.workspace_id == func.any(bindparam("workspace_ids", type_=ARRAY(Uuid))),
        ledger_entries.c.user_id == bindparam("user_id"),
        ledger_entries.c.kind.not_in(CREDIT_KINDS),
    )
    .scalar_subquery()
    .label("cost_nano"),
)
MAX_INT64 = 2**63 - 1


def _list_entries(*, own: bool, query: PageQuery) -> Select[Any]:
    """Entries of a workspace in the direction of the page; `own`: nothing but what the user was charged."""
    column = ledger_entries.c
    statement = select(ledger_entries).where(column.workspace_id == bindparam("workspace_id"))
    if own:
        statement = statement.where(column.user_id == bindparam("user_id"), column.kind.in_(CHARGE_KINDS))
    if query.position is not None:
        beyond = column.id > bindparam("position") if query.backwards else column.id < bindparam("position")
        statement = statement.where(beyond)
    return statement.order_by(column.id if query.backwards else column.id.desc()).limit(bindparam("limit"))


class Store:
    """Every method is one statement, and one transaction, unless its docstring says otherwise."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = autocommit(engine)

    async def open_account(self, workspace_id: WorkspaceId, *, signup_nano: int) -> None:
        """Open the account, unless there is one, and book its signup credits."""
        async with self._engine.connect() as connection:
            await connection.execute(OPEN_ACCOUNT, {"workspace_id": workspace_id, "signup_nano": signup_nano})

    async def find_account(self, workspace_id: WorkspaceId) -> Account | None:
        """The workspace's credits."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(FIND_ACCOUNT, {"workspace_id": workspace_id})).one_or_none()
        return Account(row.balance_nano, row.held_nano) if row is not None else None

    async def hold(self, request: HoldRequest, terms: HoldTerms) -> Hold | Account:
        """Set credits aside. A repeated call returns the first hold; the account, when it has too little."""
        parameters = _hold_parameters(request, terms)
        try:
            row = await self._hold(parameters)
        except IntegrityError:  # a twin, or a release, was a moment earlier: now its row is seen
            row = await self._hold(parameters)
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
        if row["id"] is not None:
            return _to_hold(row)
        return Account(row["balance_nano"] or 0, row["held_nano"] or 0)

    async def _hold(self, parameters: Mapping[str, Any]) -> RowMapping:
        async with self._engine.connect() as connection:
            return (await connection.execute(HOLD, parameters)).mappings().one()

    async def find_holds(self, ids: Collection[HoldId]) -> dict[HoldId, Hold]:
        """The holds that are known, tombstones included."""
        async with self._engine.connect() as connection:
            rows = (await connection.execute(FIND_HOLDS, {"ids": list(ids)})).mappings()
            return {hold.id: hold for hold in map(_to_hold, rows)}

    async def settle(self, charges: Sequence[Charge]) -> set[HoldId]:
        """Pay open holds, each with its entry of the ledger; returns those that were paid by this call."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(SETTLE, _settle_parameters(charges))
            return set(rows.scalars())

    async def release(self, ids: Collection[HoldId], *, bury_unknown: bool = True) -> int:
        """Give open holds back; unknown ids become tombstones, in a statement of their own. Returns how many were."""
        async with self._engine.connect() as connection:
            if bury_unknown:
                await connection.execute(BURY, {"ids": list(ids)})
            return int((await connection.execute(RELEASE, {"ids": list(ids)})).scalar_one())

    async def find_expired(self) -> list[HoldId]:
        """Open holds past their time, oldest first, at most SWEEP_BATCH."""
        async with self._engine.connect() as connection:
            return list((await connection.execute(EXPIRED)).scalars())

    async def grant(self, grant: Grant) -> Entry:
        """Add credits to an open account. A repeated call returns the first entry, in a second statement."""
        parameters = {
            "workspace_id": grant.workspace_id,
            "user_id": grant.user_id,
            "amount_nano": grant.amount_nano,
            "reason": grant.reason,
            "idempotency_key": grant.idempotency_key,
            "max_balance_nano": MAX_BALANCE_NANO,
        }
        async with self._engine.connect() as connection:
            row = (await connection.execute(GRANT, parameters)).mappings().one_or_none()
            if row is None:
                row = (await connection.execute(FIND_GRANT, parameters)).mappings().one_or_none()
        if row is None:
            raise InvalidArgument("The account can't carry that many credits.")
        entry = _to_entry(row)
        if (entry.workspace_id, entry.amount_nano, entry.reason) != (
            grant.workspace_id,
            grant.amount_nano,
            grant.reason,
        ):
            raise IdempotencyKeyReused
        return entry

    async def list_entries(self, caller: Caller, query: PageQuery) -> Page[Entry]:
        """The workspace's ledger, newest first: all of it for who administers it, else the caller's own charges."""
        parameters: dict[str, Any] = {"workspace_id": caller.workspace_id, "limit": query.limit + 1}
        if query.position is not None:
            parameters["position"] = parse_id(query.position)
            if parameters["position"] is None:
                raise InvalidCursor
        if not caller.administers:
            parameters["user_id"] = caller.user_id
        async with self._engine.connect() as connection:
            rows = await connection.execute(_list_entries(own=not caller.administers, query=query), parameters)
            return page_of(query, [_to_entry(row) for row in rows.mappings()], lambda entry: str(entry.id))

    async def sum_usage(self, user_id: str, workspace_ids: Collection[WorkspaceId]) -> CreditUsage:
        """What the workspaces were given and what the user was charged in them."""
        parameters = {"user_id": user_id, "workspace_ids": list(workspace_ids)}
        async with self._engine.connect() as connection:
            row = (await connection.execute(CREDIT_USAGE, parameters)).one()
        return CreditUsage(limit_nano=_clamped(row.limit_nano), cost_nano=_clamped(row.cost_nano))


def _clamped(total: Decimal) -> int:
    """A sum over many accounts may leave the 64 bits that each of them keeps within."""
    return min(int(total), MAX_INT64)


def _hold_parameters(request: HoldRequest, terms: HoldTerms) -> dict[str, Any]:
    # Int8, because psycopg otherwise sends the shortest type that fits: one prepared statement for each mix of sizes.
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
        "seconds": [float(charge.usage.seconds) for charge in charges],
        "estimated": [charge.usage.estimated for charge in charges],
        "workspace_ids": list({charge.workspace_id for charge in charges}),
    }


def _dump_tiers(tiers: Iterable[Tier]) -> str:
    return json.dumps(
        [[tier.up_to_input_tokens, tier.input_nano_per_million, tier.output_nano_per_million] for tier in tiers]
    )


def _to_hold(row: RowMapping) -> Hold:
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


def _to_entry(row: RowMapping) -> Entry:
    charge = row["debit_account"] == "workspace"
    usage = Usage(row["input_tokens"], row["output_tokens"], row["seconds"], row["estimated"]) if charge else None
    return Entry(
        id=EntryId(row["id"]),
        workspace_id=row["workspace_id"],
        kind=EntryKind(row["kind"]),
        amount_nano=-row["amount_nano"] if charge else row["amount_nano"],
        created_at=row["created_at"],
        user_id=row["user_id"] or "",
        hold_id=_found(row["hold_id"]),
        session_id=_session(row["session_id"]),
        provider=row["provider"] or "",
        model=row["model"] or "",
        usage=usage,
        reason=row["reason"] or "",
    )


def _found(id: UUID | None) -> HoldId | None:
    return HoldId(id) if id is not None else None


def _session(id: UUID | None) -> SessionId | None:
    return SessionId(id) if id is not None else None
