"""Idempotency keys of work that another service does."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from services.chat.errors import IdempotencyKeyReused
from services.chat.store.idempotency import KeyStore
from services.chat.usecases.keys import KeyUseCases
from services.kit.callers import Caller, Role, WorkspaceId
from services.kit.postgres.engine import create_engine
from tests.unit.chat.conftest import WORKSPACE

ALICE = Caller("alice", WORKSPACE, Role.MEMBER)
ROUTE, BODY = "transcribe", b"a digest"


@pytest.fixture
async def keys(database_url: str) -> AsyncIterator[KeyUseCases]:
    engine = create_engine(database_url, pool_size=4, application="test")
    yield KeyUseCases(KeyStore(engine))
    await engine.dispose()


async def test_the_first_request_with_a_key_names_the_work_of_all(keys: KeyUseCases) -> None:
    first, second = uuid4(), uuid4()
    assert await keys.bind_key(ALICE, ROUTE, "k", BODY, first) == first
    assert await keys.bind_key(ALICE, ROUTE, "k", BODY, second) == first


async def test_twins_at_once_are_one_work(keys: KeyUseCases) -> None:
    bound = await asyncio.gather(*(keys.bind_key(ALICE, ROUTE, "k", BODY, uuid4()) for _ in range(8)))
    assert len(set(bound)) == 1


async def test_a_key_belongs_to_its_user_route_and_workspace(keys: KeyUseCases) -> None:
    bob, elsewhere = Caller("bob", WORKSPACE, Role.MEMBER), Caller("alice", WorkspaceId(uuid4()), Role.MEMBER)
    ids = [uuid4() for _ in range(4)]
    assert ids == [
        await keys.bind_key(ALICE, ROUTE, "k", BODY, ids[0]),
        await keys.bind_key(bob, ROUTE, "k", BODY, ids[1]),
        await keys.bind_key(ALICE, "another", "k", BODY, ids[2]),
        await keys.bind_key(elsewhere, ROUTE, "k", BODY, ids[3]),
    ]


async def test_a_key_with_another_body_is_refused(keys: KeyUseCases) -> None:
    await keys.bind_key(ALICE, ROUTE, "k", BODY, uuid4())
    with pytest.raises(IdempotencyKeyReused):
        await keys.bind_key(ALICE, ROUTE, "k", b"another digest", uuid4())
