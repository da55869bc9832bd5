"""The tables of the Postgres schema `billing`, as the migrations leave them. Needs PostgreSQL 18."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "billing"
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
