"""A store on a fresh database."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from services.billing.store import Store
from services.billing.usecases import Billing
from services.kit.db import create_engine
from tests.unit.billing.factories import billing_over


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Connections to the test's own database."""
    engine = create_engine(database_url, pool_size=10, application="test")
    yield engine
    await engine.dispose()


@pytest.fixture
def store(engine: AsyncEngine) -> Store:
    """The store."""
    return Store(engine)


@pytest.fixture
def billing(store: Store) -> Billing:
    """The use cases, without signup credits."""
    return billing_over(store)
