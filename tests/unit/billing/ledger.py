"""What the tables say, for tests: the folds that the accounts have to agree with."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

# One statement, so one snapshot.
_BOOKS = text("""
    select
        account.workspace_id, account.balance_nano, account.held_nano,
        coalesce(entries.folded_nano, 0) as folded_nano,
        coalesce(entries.charges, 0) as charges,
        coalesce(holds.open_nano, 0) as open_nano,
        coalesce(holds.open, 0) as open,
        coalesce(holds.settled, 0) as settled
    from billing.accounts as account
        left join (
            select
                workspace_id,
                sum(case when credit_account = 'workspace' then amount_nano else -amount_nano end) as folded_nano,
                count(hold_id) as charges
            from billing.ledger_entries
            group by workspace_id
        ) as entries using (workspace_id)
        left join (
            select
                workspace_id,
                sum(amount_nano) filter (where state = 'open') as open_nano,
                count(*) filter (where state = 'open') as open,
                count(*) filter (where state = 'settled') as settled
            from billing.holds
            group by workspace_id
        ) as holds using (workspace_id)
    order by account.workspace_id
""")


@dataclass(frozen=True)
class Books:
    """One account beside the folds of its entries and holds."""

    balance_nano: int
    held_nano: int
    folded_nano: int
    charges: int
    open_nano: int
    open: int
    settled: int

    def check(self) -> None:
        """The invariants of money."""
        assert self.balance_nano == self.folded_nano
        assert self.held_nano == self.open_nano
        assert self.balance_nano - self.held_nano >= 0
        assert self.charges == self.settled


async def read_books(engine: AsyncEngine) -> list[Books]:
    """Every account of one snapshot."""
    async with engine.connect() as connection:
        rows = (await connection.execute(_BOOKS)).mappings().all()
    return [Books(**{name: int(value) for name, value in row.items() if name != "workspace_id"}) for row in rows]


async def read_only_books(engine: AsyncEngine) -> Books:
    """The one account there is, its invariants checked."""
    (books,) = await read_books(engine)
    books.check()
    return books
