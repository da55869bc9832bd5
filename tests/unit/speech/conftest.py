"""Transcriptions with everything real but the provider: the SDK, the decoder's child, billing on Postgres."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import grpc
import pytest
from backendai.billing.v1.billing_pb2_grpc import add_BillingServiceServicer_to_server

from services.billing import domain as billing_domain
from services.billing.prices import load_prices
from services.billing.servicer import BillingServicer
from services.billing.store import Store
from services.billing.usecases import Billing as BillingService
from services.common.providers.retries import Retries
from services.kit.callers import Caller, Role, WorkspaceId
from services.kit.grpc_client import dial
from services.kit.grpc_server import Server
from services.kit.money import NANO
from services.kit.paging import PageQuery
from services.kit.postgres.errors import is_down
from services.kit.postgres.pool import Database
from services.speech.answers import Answers
from services.speech.billing import Billing
from services.speech.domain import Bounds, HoldId, Job, Paid
from services.speech.measure import Decoders
from services.speech.providers import Provider
from services.speech.providers.openai import OpenAI
from services.speech.usecases import Transcriptions
from tests.audio import tone
from tests.fakes.provider import Behaviour
from tests.fakes.whisper import FakeWhisper

KEY = "sk-a-secret-key"
MODEL = "whisper-1"
NANO_PER_SECOND = 100_000
"""whisper-1's listed price."""
FAST = Retries(first_wait_seconds=0.001)
BOUNDS = Bounds(max_seconds=14_400)


@dataclass
class Account:
    """A funded workspace, and a look at what became of its credits."""

    service: BillingService
    workspace_id: WorkspaceId

    @property
    def alice(self) -> Caller:
        """A member of it."""
        return Caller("alice", self.workspace_id, Role.MEMBER)

    async def spent_and_held(self) -> tuple[int, int]:
        """Nano-credits."""
        account = await self.service.get_credits(self._admin)
        return NANO - account.balance_nano, account.held_nano

    async def charges(self) -> list[billing_domain.Entry]:
        """The ledger without the grant."""
        page = await self.service.list_usage(self._admin, PageQuery(200))
        return [entry for entry in page.entries if entry.kind == billing_domain.EntryKind.SPEECH]

    @property
    def _admin(self) -> Caller:
        workspace = WorkspaceId(self.workspace_id)
        return Caller("admin", workspace, Role.ADMIN)


@dataclass
class RunningBilling:
    """The service, served."""

    service: BillingService
    server: Server
    address: str

    async def account(self, nano: int = NANO) -> Account:
        """A fresh workspace with so much."""
        workspace = WorkspaceId(uuid4())
        admin = Caller("admin", WorkspaceId(workspace), Role.ADMIN)
        await self.service.grant_credits(admin, billing_domain.Grant(admin.workspace_id, "admin", nano))
        return Account(self.service, workspace)


@pytest.fixture
async def running_billing(database_url: str) -> AsyncIterator[RunningBilling]:
    """Billing on a fresh database, with the prices that it ships."""
    database = Database(database_url, pool_size=4, application="test")
    service = BillingService(
        store=Store(database),
        prices=load_prices(),
        today=lambda: datetime.now(UTC).date(),
        signup_nano=0,
        ceiling_nano=NANO,
    )
    server = Server("127.0.0.1:0", is_down=is_down)
    port = server.grpc.add_insecure_port("127.0.0.1:0")
    add_BillingServiceServicer_to_server(BillingServicer(service), server.grpc)
    await server.grpc.start()
    yield RunningBilling(service, server, f"127.0.0.1:{port}")
    await server.drain(0)
    await database.close()


@pytest.fixture
async def account(running_billing: RunningBilling) -> Account:
    """One credit."""
    return await running_billing.account()


@pytest.fixture
async def whisper() -> AsyncIterator[FakeWhisper]:
    async with FakeWhisper(Behaviour("Good morning.")) as fake:
        yield fake


@asynccontextmanager
async def openai_at(url: str, *, model: str = MODEL, bounds: Bounds = BOUNDS) -> AsyncIterator[OpenAI]:
    """The provider over the wire."""
    provider = OpenAI("openai", model, bounds=bounds, api_key=KEY, base_url=url)
    yield provider
    await provider.close()


@pytest.fixture
async def provider(whisper: FakeWhisper) -> AsyncIterator[OpenAI]:
    async with openai_at(whisper.url) as provider:
        yield provider


@asynccontextmanager
async def transcribing(
    provider: Provider | None,
    billing: RunningBilling,
    *,
    limit: int = 100,
    timeout_seconds: float = 30,
    hold_seconds: float = 60,
    size_bytes: int = 2**20,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Transcriptions]:
    """The use case; leaving the block waits for what is still being paid."""
    channel: grpc.aio.Channel = dial(billing.address, "billing")
    transcriptions = Transcriptions(
        provider,
        Billing(channel, hold_seconds=hold_seconds, clock=clock),
        Decoders(2, timeout_seconds=30),
        Answers(size_bytes=size_bytes, ttl_seconds=60),
        limit=limit,
        timeout_seconds=timeout_seconds,
        retries=FAST,
    )
    yield transcriptions
    await transcriptions.close()
    await channel.close()


@pytest.fixture
async def transcriptions(provider: OpenAI, running_billing: RunningBilling) -> AsyncIterator[Transcriptions]:
    async with transcribing(provider, running_billing) as transcriptions:
        yield transcriptions


def a_job(hold_id: UUID | None = None, language: str = "", *, may_repeat: bool = False) -> Job:
    """A request of its own, or one that may come again."""
    return Job(HoldId(hold_id or uuid4()), language, may_repeat)


async def in_chunks(file: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    """As they come in."""
    for start in range(0, len(file), size):
        yield file[start : start + size]


async def transcribe(
    transcriptions: Transcriptions, caller: Caller, file: bytes | None = None, job: Job | None = None
) -> Paid:
    """A second of sound, unless told otherwise."""
    chunks = in_chunks(tone("wav", 1.0, rate=16_000) if file is None else file)
    return await transcriptions.transcribe(caller, job or a_job(), chunks, patience_seconds=60)
