"""An agent with everything real but the far ends: provider SDKs, NATS and gRPC; providers and chat are fakes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from deploy.local.server import free_port
from services.agent.frameworks import Framework
from services.agent.frameworks.langgraph import LangGraph
from services.agent.frameworks.none import Plain
from services.agent.providers.google import Google
from services.agent.providers.openai import OpenAICompatible
from services.agent.tasks import Tasks
from services.agent.tools import Tools
from services.agent.worker import Worker
from services.common.providers.retries import Retries
from services.kit.bus import Bus
from services.kit.grpc_client import dial
from tests.fakes.chat import FakeChat
from tests.fakes.gemini import FakeGemini
from tests.fakes.openai import FakeOpenAI
from tests.servers import Nats, new_nats

KEY = "sk-a-secret-key"
FRAMEWORKS: dict[str, Framework] = {"none": Plain(), "langgraph": LangGraph()}
FAST = Retries(first_wait_seconds=0.01)


@pytest.fixture
async def openai_fake() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI() as fake:
        yield fake


@pytest.fixture
async def gemini_fake() -> AsyncIterator[FakeGemini]:
    async with FakeGemini() as fake:
        yield fake


@pytest.fixture
async def openai(openai_fake: FakeOpenAI) -> AsyncIterator[OpenAICompatible]:
    provider = OpenAICompatible("openai", api_key=KEY, base_url=openai_fake.url)
    yield provider
    await provider.close()


@pytest.fixture
async def google(gemini_fake: FakeGemini) -> AsyncIterator[Google]:
    provider = Google(api_key=KEY, base_url=gemini_fake.url)
    yield provider
    await provider.close()


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    with new_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def bus(nats_server: Nats) -> AsyncIterator[Bus]:
    """A connection of the test's own, and an empty queue."""
    async with connected(nats_server) as bus:
        await bus.ensure_jobs()
        await bus.js.purge_stream("JOBS")
        await bus.ensure_status()
        yield bus


@pytest.fixture
async def chat() -> AsyncIterator[FakeChat]:
    async with FakeChat(free_port()) as chat:
        yield chat


@asynccontextmanager
async def connected(server: Nats) -> AsyncIterator[Bus]:
    bus = Bus(server.url, name="test")
    is_connected = asyncio.Event()
    bus.on_connect(is_connected.set)
    bus.start()
    async with asyncio.timeout(10):
        await is_connected.wait()
    yield bus
    await bus.close()


@asynccontextmanager
async def working(
    chat: FakeChat,
    nats_url: str,
    provider: OpenAICompatible,
    *,
    slots: int = 4,
    drain_seconds: float = 5.0,
    heartbeat_seconds: float = 0.1,
    tools: Tools | None = None,
) -> AsyncIterator[Worker]:
    """A worker at work; leaving the block stops it as SIGTERM does."""
    bus = Bus(nats_url, name="agent")
    channel = dial(chat.address, "chat")
    worker = Worker(
        Tasks(channel, "test"),
        bus,
        providers={"openai": provider},
        frameworks=FRAMEWORKS,
        tools=tools or Tools(),
        slots=slots,
        retries=FAST,
        heartbeat_seconds=heartbeat_seconds,
    )
    stop = asyncio.Event()
    bus.start()
    at_work = asyncio.create_task(worker.work(stop, drain_seconds=drain_seconds))
    try:
        yield worker
    finally:
        stop.set()
        await at_work
        await bus.close()
        await channel.close(None)
