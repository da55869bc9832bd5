"""A store on a fresh database."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, LiteralString

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.billing.store import Store
from services.billing.usecases import Billing
from services.kit.postgres.engine import create_engine
from services.kit.postgres.pool import NO_PARAMETERS, Database, DictRow
from tests.unit.billing.factories import billing_over


class CountingDatabase(Database):
    """Knows how many statements it was asked."""

    statements = 0

    async def fetch(
        self, statement: LiteralString, parameters: Mapping[str, Any] = NO_PARAMETERS, *, seconds: float = 3.0
    ) -> list[DictRow]:
        """Count, then run."""
        self.statements += 1
        return await super().fetch(statement, parameters, seconds=seconds)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A look at the tables past the store."""
    engine = create_engine(database_url, pool_size=10, application="test")
    yield engine
    await engine.dispose()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[CountingDatabase]:
    """What the store runs on."""
    database = CountingDatabase(database_url, pool_size=10, application="test")
    yield database
    await database.close()


@pytest.fixture
def store(database: CountingDatabase) -> Store:
    """The store."""
    return Store(database)


@pytest.fixture
def billing(store: Store) -> Billing:
    """The use cases, without signup credits."""
    return billing_over(store)
