"""The agent process: `python -m services.agent`."""

import asyncio
import os
import socket
from functools import partial

import structlog

from services.agent.frameworks import Framework
from services.agent.frameworks.langgraph import LangGraph
from services.agent.frameworks.none import Plain
from services.agent.providers import Provider
from services.agent.providers.google import Google
from services.agent.providers.openai import OpenAICompatible
from services.agent.settings import AgentSettings, keep_libraries_quiet
from services.agent.tasks import Tasks
from services.agent.tools import Tools
from services.agent.worker import Worker
from services.common.providers.calls import count_from_zero
from services.common.providers.retries import Retries
from services.kit import process
from services.kit.bus import Bus
from services.kit.grpc_client import dial
from services.kit.grpc_server import Server
from services.kit.tls import Tls

# A key that a server without keys does not look at; the SDK insists on one.
NO_KEY = "none"
LOOK_SECONDS = 0.25

log = structlog.get_logger()


def make_providers(settings: AgentSettings) -> dict[str, Provider]:
    """Those that are configured, by name."""
    idle_seconds = settings.agent_provider_timeout_s
    providers: dict[str, Provider] = {}
    for name, key, base_url in (
        ("openai", settings.openai_api_key, settings.openai_base_url),
        ("anthropic", settings.anthropic_api_key, settings.anthropic_base_url),
        ("groq", settings.groq_api_key, settings.groq_base_url),
        ("deepseek", settings.deepseek_api_key, settings.deepseek_base_url),
    ):
        if key is not None:
            providers[name] = OpenAICompatible(
                name, api_key=key.get_secret_value(), base_url=base_url, idle_seconds=idle_seconds
            )
    if settings.local_base_url is not None:
        providers["local"] = OpenAICompatible(
            "local", api_key=NO_KEY, base_url=settings.local_base_url, idle_seconds=idle_seconds
        )
    if settings.google_api_key is not None:
        providers["google"] = Google(
            api_key=settings.google_api_key.get_secret_value(),
            base_url=settings.google_base_url,
            idle_seconds=idle_seconds,
        )
    return providers


def make_frameworks() -> dict[str, Framework]:
    """Those that are installed, by name."""
    return {"none": Plain(), "langgraph": LangGraph()}


async def main(settings: AgentSettings, stop: asyncio.Event) -> None:
    """Work until `stop`."""
    keep_libraries_quiet()
    tls = Tls.of(settings.grpc_tls_dir)
    bus = Bus(settings.nats_url, name="agent", replicas=settings.nats_replicas)
    server = Server(settings.agent_listen, tls=tls, ops_listen=settings.ops_listen, ready=False)
    providers = make_providers(settings)
    count_from_zero(providers)
    channel = dial(settings.chat_address, "chat", tls)
    worker = Worker(
        Tasks(channel, worker_id=f"{socket.gethostname()}-{os.getpid()}"),
        bus,
        providers=providers,
        frameworks=make_frameworks(),
        tools=Tools(),
        slots=settings.agent_concurrency,
        retries=Retries(),
    )
    await server.start()
    bus.start()
    readiness = asyncio.create_task(tell_readiness(worker, server))
    try:
        await worker.work(stop, drain_seconds=settings.drain_seconds)
    finally:
        readiness.cancel()
        await server.drain(0)
        await bus.close()
        await channel.close(None)
        for provider in providers.values():
            await provider.close()


async def tell_readiness(worker: Worker, server: Server) -> None:
    """Keep the health service and /readyz at what the worker says of itself."""
    ready = False
    while True:
        if worker.is_ready != ready:
            ready = not ready
            await server.set_ready(ready)
            log.info("ready" if ready else "not_ready")
        await asyncio.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    settings = AgentSettings.read()
    process.run("agent", settings, partial(main, settings))
