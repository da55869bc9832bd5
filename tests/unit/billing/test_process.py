"""The whole process: it starts before Postgres does and says so."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from backendai.billing.v1 import billing_pb2 as pb
from backendai.billing.v1.billing_pb2_grpc import BillingServiceStub
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from deploy.local.postgres import FAST
from deploy.local.server import free_port
from services.billing.__main__ import main
from services.billing.migrations.__main__ import main as migrate
from services.billing.settings import Settings
from services.kit.grpc_client import dial
from services.kit.grpc_errors import reason_of
from tests.servers import new_postgres

WITHIN_SECONDS = 20.0


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[grpc.aio.Channel]:
    """The process's main, and a channel to it."""
    stop = asyncio.Event()
    process = asyncio.create_task(main(settings, stop))
    channel = dial(settings.billing_listen, "billing")
    try:
        await until_health_is(channel, health_pb2.HealthCheckResponse.NOT_SERVING, or_better=True)
        yield channel
    finally:
        await channel.close()
        stop.set()
        await process


async def until_health_is(channel: grpc.aio.Channel, wanted: int, *, or_better: bool = False) -> None:
    """Wait for the health service to say so."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while True:
            with suppress(grpc.aio.AioRpcError):
                check = HealthStub(channel).Check  # type: ignore[attr-defined]  # the stubs leave it out
                status = (await check(health_pb2.HealthCheckRequest())).status
                if status == wanted or (or_better and status == health_pb2.HealthCheckResponse.SERVING):
                    return
            await asyncio.sleep(0.02)


def settings_for(database_url: str) -> Settings:
    """As the environment would give them."""
    return Settings(
        database_url=database_url,
        billing_listen=f"127.0.0.1:{free_port()}",
        billing_signup_credits="10",
        drain_seconds=0.1,
    )


@pytest.mark.timeout(60)
async def test_without_postgres_it_serves_unavailable_until_postgres_is_there(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres = new_postgres(open_folder / "late", settings=FAST)
    async with running(settings_for(postgres.url)) as channel:
        started = time.monotonic()
        workspace = str(uuid4())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await BillingServiceStub(channel).OpenAccount(pb.OpenAccountRequest(workspace_id=workspace))
        assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
        assert time.monotonic() - started < 3
        assert (await BillingServiceStub(channel).ListModels(pb.ListModelsRequest())).models
        await asyncio.to_thread(postgres.start)
        try:
            monkeypatch.setenv("DATABASE_URL", postgres.url)
            await asyncio.to_thread(migrate)
            await until_health_is(channel, health_pb2.HealthCheckResponse.SERVING)
            await BillingServiceStub(channel).OpenAccount(pb.OpenAccountRequest(workspace_id=workspace))
            check = await BillingServiceStub(channel).CheckCredits(pb.CheckCreditsRequest(workspace_id=workspace))
            assert check.available_nano == 10_000_000_000
        finally:
            await asyncio.to_thread(postgres.stop)
        await until_health_is(channel, health_pb2.HealthCheckResponse.NOT_SERVING)


async def test_a_port_in_use_is_a_sentence(database_url: str) -> None:
    settings = settings_for(database_url)
    async with running(settings):
        with pytest.raises(SystemExit, match="in use"):
            await main(settings, asyncio.Event())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BILLING_SIGNUP_CREDITS", "-1"),
        ("BILLING_SIGNUP_CREDITS", "0.0000000001"),
        ("BILLING_SIGNUP_CREDITS", "NaN"),
        ("BILLING_HOLD_CEILING", "0"),
        ("BILLING_DATABASE_POOL", "1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/x")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name.lower()):
        Settings()
