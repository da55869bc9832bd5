"""The agent as a process of its own."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.server import free_port
from services.agent.__main__ import make_providers
from services.agent.settings import AgentSettings
from services.kit.bus import Bus
from tests.fakes.chat import FakeChat
from tests.fakes.gemini import FakeGemini
from tests.fakes.openai import FakeOpenAI
from tests.nats_accounts import PASSWORD, NatsWithPassword
from tests.servers import Nats, new_nats
from tests.unit.agent.conftest import KEY
from tests.unit.agent.test_worker import eventually, wake

ROOT = Path(__file__).parents[3]
SECRET_WORDS = "the-secret-of-the-conversation"


@asynccontextmanager
async def agent_process(log: Path, **environment: str) -> AsyncIterator[None]:
    """A process with this environment; its output goes to `log`. Leaving the block sends SIGTERM and waits."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.agent"),
            cwd=ROOT,
            env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            stdout=output,
            stderr=output,
        )
    try:
        yield
    finally:
        process.terminate()
        async with asyncio.timeout(15):
            assert await process.wait() == 0


async def health(address: str) -> int:
    """What its health service says; 0 where nothing answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)).status)
        except grpc.aio.AioRpcError:
            return 0


async def test_it_starts_without_anybody_there_and_is_ready_while_nats_is(tmp_path: Path) -> None:
    listen, server = f"127.0.0.1:{free_port()}", new_nats(tmp_path / "nats")

    async def is_away() -> bool:
        return await health(listen) == health_pb2.HealthCheckResponse.NOT_SERVING

    async def is_serving() -> bool:
        return await health(listen) == health_pb2.HealthCheckResponse.SERVING

    async with agent_process(
        tmp_path / "log", AGENT_LISTEN=listen, CHAT_ADDRESS=f"127.0.0.1:{free_port()}", NATS_URL=server.url
    ):
        await eventually(is_away)
        for _ in range(2):
            with server:
                await eventually(is_serving)
            await eventually(is_away)
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_it_is_not_ready_while_nats_refuses_its_password(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"

    async def is_away() -> bool:
        return await health(listen) == health_pb2.HealthCheckResponse.NOT_SERVING

    async def is_serving() -> bool:
        return await health(listen) == health_pb2.HealthCheckResponse.SERVING

    with NatsWithPassword(tmp_path / "nats") as server:
        async with agent_process(
            tmp_path / "log", AGENT_LISTEN=listen, CHAT_ADDRESS=f"127.0.0.1:{free_port()}", NATS_URL=server.url
        ):
            await eventually(is_serving)
            server.change(password="another")
            await eventually(is_away)
            server.change()
            await eventually(is_serving)
    assert PASSWORD not in (tmp_path / "log").read_text()


async def test_no_environment_makes_it_tell_a_conversation_to_anybody_else(
    tmp_path: Path, chat: FakeChat, bus: Bus, nats_server: Nats, openai_fake: FakeOpenAI, gemini_fake: FakeGemini
) -> None:
    """A run of each provider, with all that switches tracing and debug logs on in the libraries beneath."""
    temperature = {"temperature": 0.7, "system_prompt": "You are a helpful research assistant."}
    for provider, model in (("openai", "gpt-4o-mini"), ("google", "gemini-2.5-pro")):
        chat.add(text=SECRET_WORDS, provider=provider, model=model, framework="langgraph", settings=temperature)
    log = tmp_path / "log"
    async with FakeOpenAI() as tracing_vendor:
        async with agent_process(
            log,
            AGENT_LISTEN=f"127.0.0.1:{free_port()}",
            CHAT_ADDRESS=chat.address,
            NATS_URL=nats_server.url,
            OPENAI_API_KEY=KEY,
            OPENAI_BASE_URL=openai_fake.url,
            GOOGLE_API_KEY=KEY,
            GOOGLE_BASE_URL=gemini_fake.url,
            LOG_LEVEL="debug",
            OPENAI_LOG="debug",
            LANGSMITH_TRACING="true",
            LANGCHAIN_TRACING_V2="true",
            LANGSMITH_API_KEY="key",
            LANGSMITH_ENDPOINT=tracing_vendor.url,
            LANGCHAIN_ENDPOINT=tracing_vendor.url,
        ):
            await wake(bus, 2)
            await chat.until(lambda: len(chat.completed) == 2)
        assert not tracing_vendor.requests
    assert "run_ended" in log.read_text()
    assert SECRET_WORDS not in log.read_text()
    assert "capital of France" not in log.read_text()
    assert KEY not in log.read_text()
    [request] = gemini_fake.requests
    assert request.json["generationConfig"]["temperature"] == 0.7


async def test_a_provider_is_on_when_its_key_is_there() -> None:
    keys = {f"{name}_api_key": KEY for name in ("openai", "google", "anthropic", "groq", "deepseek")}
    providers = make_providers(AgentSettings.model_validate(keys | {"local_base_url": "http://127.0.0.1:1/v1"}))
    assert sorted(providers) == ["anthropic", "deepseek", "google", "groq", "local", "openai"]
    for provider in providers.values():
        await provider.close()
    assert make_providers(AgentSettings(openai_base_url="http://127.0.0.1:1/v1")) == {}


def test_a_key_is_not_shown_with_the_settings() -> None:
    assert KEY not in repr(AgentSettings.model_validate({"openai_api_key": KEY}))
