"""The first request of a member opens its workspace's account."""

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from backendai.billing.v1 import billing_pb2

from gateway.server import Gateway
from services.kit.errors import Unavailable
from tests.unit.gateway.conftest import FakeServices, client_of, until
from tests.unit.gateway.samples import CHATS, CREDITS, OTHER_WORKSPACE, WORKSPACE


async def test_it_is_opened_once_before_anything_else(client: httpx.AsyncClient, services: FakeServices) -> None:
    for path in (CHATS, CREDITS, CHATS):
        assert (await client.get(path)).status_code == 200
    assert [name for name, _ in services.asked] == ["OpenAccount", "ListSessions", "GetCredits", "ListSessions"]
    assert services.requests("OpenAccount")[0].workspace_id == WORKSPACE


async def test_requests_at_the_same_time_share_one_opening(client: httpx.AsyncClient, services: FakeServices) -> None:
    may_end = asyncio.Event()

    async def slowly() -> billing_pb2.OpenAccountResponse:
        await may_end.wait()
        return billing_pb2.OpenAccountResponse()

    services.answers["OpenAccount"] = lambda _: slowly()
    several = asyncio.gather(*(client.get(CHATS) for _ in range(10)))
    await until(lambda: services.asked)
    may_end.set()
    assert {answer.status_code for answer in await several} == {200}
    assert len(services.requests("OpenAccount")) == 1


@pytest.mark.parametrize("error", [Unavailable(), grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_billing_being_down_fails_no_reading_of_chats(
    client: httpx.AsyncClient, services: FakeServices, error: Any
) -> None:
    services.answers["OpenAccount"] = error
    assert (await client.get(CHATS)).status_code == 200
    del services.answers["OpenAccount"]
    for _ in range(3):
        await client.get(CHATS)
    assert len(services.requests("OpenAccount")) == 2


async def test_guests_open_nothing(gateway: Gateway, services: FakeServices) -> None:
    async with client_of(gateway, workspaces={OTHER_WORKSPACE: "owner"}) as client:
        await client.get(CHATS)
        await client.get("/api/users/credit-usage/")
    assert services.requests("OpenAccount") == []


async def test_what_is_remembered_is_bounded(
    gateway: Gateway, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.accounts.MAX_SEEN", 1)
    async with client_of(gateway, workspaces={WORKSPACE: "owner", OTHER_WORKSPACE: "owner"}) as client:
        for path in (CHATS, CHATS.replace(WORKSPACE, OTHER_WORKSPACE), CHATS):
            await client.get(path)
    assert len(services.requests("OpenAccount")) == 3
