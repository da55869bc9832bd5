"""The service config of docs/grpc.md does to real calls what its chapter says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from backendai.billing.v1 import billing_pb2 as pb
from backendai.billing.v1.billing_pb2_grpc import (
    BillingServiceServicer,
    BillingServiceStub,
    add_BillingServiceServicer_to_server,
)

from docs.contracts import read
from docs.grpc_document import service_config
from services.kit.errors import InvalidArgument, Unavailable
from services.kit.grpc_server import Server

CONFIG = service_config(read())
DEADLINE_SECONDS = 10.0


class Billing(BillingServiceServicer):
    """A billing service that fails as often as it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.failures: list[Exception] = []

    async def _answer(self, answer: Any) -> Any:
        self.calls += 1
        if self.failures:
            raise self.failures.pop()
        return answer

    async def GetCredits(self, request: pb.GetCreditsRequest, context: object) -> pb.GetCreditsResponse:
        found: pb.GetCreditsResponse = await self._answer(pb.GetCreditsResponse(balance_nano=7))
        return found

    async def GrantCredits(self, request: pb.GrantCreditsRequest, context: object) -> pb.GrantCreditsResponse:
        found: pb.GrantCreditsResponse = await self._answer(pb.GrantCreditsResponse())
        return found


class Replica:
    """One process of it, as far as its callers can tell."""

    def __init__(self, *, ready: bool = True) -> None:
        self.billing = Billing()  # type: ignore[abstract]  # what is not overridden is UNIMPLEMENTED
        self.server = Server("127.0.0.1:0", ready=ready)
        self.port = self.server.grpc.add_insecure_port("127.0.0.1:0")
        add_BillingServiceServicer_to_server(self.billing, self.server.grpc)


@pytest.fixture
async def replicas() -> AsyncIterator[Callable[..., Awaitable[Replica]]]:
    """Starts replicas, and ends them."""
    running: list[Replica] = []

    async def start(*, ready: bool = True) -> Replica:
        replica = Replica(ready=ready)
        running.append(replica)
        await replica.server.start()
        return replica

    yield start
    for replica in running:
        await replica.server.drain(0)


@pytest.fixture
async def dial() -> AsyncIterator[Callable[..., Any]]:
    """Makes clients that have the service config and no other option that matters, and hangs up."""
    channels: list[grpc.aio.Channel] = []

    def made(*replicas: Replica) -> Any:
        target = "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
        options = (("grpc.service_config", CONFIG), ("grpc.enable_http_proxy", 0))
        channels.append(grpc.aio.insecure_channel(target, options))
        return BillingServiceStub(channels[-1])

    yield made
    for channel in channels:
        await channel.close()


Start = Callable[..., Awaitable[Replica]]
Dial = Callable[..., Any]


async def test_what_is_marked_is_repeated_while_it_is_unavailable(replicas: Start, dial: Dial) -> None:
    one = await replicas()
    one.billing.failures = [Unavailable(), Unavailable(), Unavailable()]
    answer = await dial(one).GetCredits(pb.GetCreditsRequest(), timeout=DEADLINE_SECONDS)
    assert (answer.balance_nano, one.billing.calls) == (7, 4)


async def test_the_fourth_failure_is_the_last(replicas: Start, dial: Dial) -> None:
    one = await replicas()
    one.billing.failures = [Unavailable() for _ in range(5)]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await dial(one).GetCredits(pb.GetCreditsRequest(), timeout=DEADLINE_SECONDS)
    assert (failed.value.code(), one.billing.calls) == (grpc.StatusCode.UNAVAILABLE, 4)


async def test_what_is_not_marked_is_called_once(replicas: Start, dial: Dial) -> None:
    one = await replicas()
    one.billing.failures = [Unavailable()]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await dial(one).GrantCredits(pb.GrantCreditsRequest(), timeout=DEADLINE_SECONDS)
    assert (failed.value.code(), one.billing.calls) == (grpc.StatusCode.UNAVAILABLE, 1)


async def test_a_refusal_is_an_answer(replicas: Start, dial: Dial) -> None:
    one = await replicas()
    one.billing.failures = [InvalidArgument()]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await dial(one).GetCredits(pb.GetCreditsRequest(), timeout=DEADLINE_SECONDS)
    assert (failed.value.code(), one.billing.calls) == (grpc.StatusCode.INVALID_ARGUMENT, 1)


async def test_calls_are_spread_over_the_addresses(replicas: Start, dial: Dial) -> None:
    one, other = await replicas(), await replicas()
    stub = dial(one, other)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (one.billing.calls and other.billing.calls):
            await stub.GetCredits(pb.GetCreditsRequest(), timeout=DEADLINE_SECONDS)


async def test_who_is_not_ready_is_left_out_until_it_is(replicas: Start, dial: Dial) -> None:
    ready, waiting = await replicas(), await replicas(ready=False)
    stub = dial(ready, waiting)
    for _ in range(20):
        await stub.GetCredits(pb.GetCreditsRequest(), timeout=DEADLINE_SECONDS)
    assert (ready.billing.calls, waiting.billing.calls) == (20, 0)
    await waiting.server.set_ready(True)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not waiting.billing.calls:
            await stub.GetCredits(pb.GetCreditsRequest(), timeout=DEADLINE_SECONDS)
