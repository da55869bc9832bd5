"""Accounts, holds and the append-only ledger."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        create table billing.accounts (
            workspace_id uuid primary key,
            balance_nano bigint not null default 0,
            held_nano bigint not null default 0,
            created_at timestamptz not null default now(),
            constraint accounts_held_check check (held_nano >= 0),
            constraint accounts_available_check check (balance_nano - held_nano >= 0)
        ) with (fillfactor = 50)
    """)
    op.execute("""
        create table billing.holds (
            id uuid primary key,
            workspace_id uuid,
            user_id text,
            session_id uuid,
            kind text,
            provider text,
            model text,
            tiers jsonb not null default '[]',
            audio_nano_per_minute bigint not null default 0,
            input_tokens bigint not null default 0,
            max_output_tokens bigint not null default 0,
            amount_nano bigint not null default 0,
            charged_nano bigint not null default 0,
            state text not null,
            expires_at timestamptz,
            created_at timestamptz not null default now(),
            ended_at timestamptz,
            constraint holds_state_check check (state in ('open', 'settled', 'released')),
            constraint holds_workspace_check check (state = 'released' or workspace_id is not null),
            constraint holds_charged_check check (charged_nano between 0 and amount_nano)
        ) with (fillfactor = 80)
    """)
    op.execute("create index holds_expires_at on billing.holds (expires_at) where expires_at is not null")
    op.execute("""
        create table billing.ledger_entries (
            id uuid primary key default uuidv7(),
            workspace_id uuid not null,
            kind text not null,
            debit_account text not null,
            credit_account text not null,
            amount_nano bigint not null,
            hold_id uuid,
            user_id text,
            session_id uuid,
            provider text,
            model text,
            input_tokens bigint,
            output_tokens bigint,
            seconds double precision,
            estimated boolean,
            reason text,
            idempotency_key text,
            created_at timestamptz not null default now(),
            constraint ledger_entries_amount_check check (amount_nano >= 0),
            constraint ledger_entries_accounts_check check (
                kind in ('chat', 'speech', 'translate') and hold_id is not null
                and debit_account = 'workspace' and credit_account = 'usage'
                or kind in ('grant', 'signup') and hold_id is null
                and debit_account = kind || 's' and credit_account = 'workspace'
            )
        )
    """)
    op.execute("create index ledger_entries_by_workspace on billing.ledger_entries (workspace_id, id)")
    op.execute("""
        create index ledger_entries_by_user on billing.ledger_entries (workspace_id, user_id, id)
        include (kind, amount_nano)
    """)
    op.execute("""
        create index ledger_entries_credits on billing.ledger_entries (workspace_id) include (amount_nano)
        where kind in ('grant', 'signup')
    """)
    op.execute("""
        create unique index ledger_entries_one_charge_a_hold on billing.ledger_entries (hold_id)
        where hold_id is not null
    """)
    op.execute("""
        create unique index ledger_entries_one_signup on billing.ledger_entries (workspace_id) where kind = 'signup'
    """)
    op.execute("""
        create unique index ledger_entries_one_grant_a_key on billing.ledger_entries (user_id, idempotency_key)
        where idempotency_key is not null
    """)
    op.execute("""
        create function billing.refuse_change() returns trigger language plpgsql as $$
        begin
            raise exception 'the ledger is append-only: % is refused', tg_op using errcode = 'restrict_violation';
        end
        $$
    """)
    op.execute("""
        create trigger append_only before update or delete or truncate on billing.ledger_entries
        for each statement execute function billing.refuse_change()
    """)


def downgrade() -> None:
    op.execute("drop table billing.ledger_entries, billing.holds, billing.accounts")
    op.execute("drop function billing.refuse_change")
