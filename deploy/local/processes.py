"""Which processes run, and what each is told: what it needs, and no secret beyond that."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from deploy.local.ai import MODEL as LOCAL_MODEL
from deploy.local.runner import Child
from deploy.local.server import LOOPBACK, Command, free_port
from deploy.local.settings import DEFAULT_MODELS, ROOT, Settings, inherited
from deploy.local.state import RUNNER_VARIABLE, DataDirectory

T = TypeVar("T")

EDGE, CORE, SERVERS = range(3)  # the order in which they stop: who calls before who is called

# Only the processes named here see these.
NEEDS = {
    "gateway": ("AUTH_JWT_SECRET", "CURSOR_SECRET", "NATS_URL"),
    "chat": ("DATABASE_URL", "NATS_URL"),
    "billing": ("DATABASE_URL",),
    "agent": ("NATS_URL", *(f"{name.upper()}_API_KEY" for name in DEFAULT_MODELS)),
}
PRIVATE = {name for names in NEEDS.values() for name in names}


@dataclass(frozen=True)
class Backends:
    """The servers that the services lean on, embedded or not."""

    database_url: str
    nats_url: str
    local_base_url: str


def environment(settings: Settings, data: DataDirectory, backends: Backends) -> dict[str, str]:
    """What the processes share: the caller's environment, with the embedded defaults for what is not set there."""
    provider, model = default_model(settings)
    defaults = {
        "LOG_FORMAT": "console",
        "LOG_LEVEL": "info",
        "DRAIN_SECONDS": "2",
        "BILLING_SIGNUP_CREDITS": "10",
        "AI_PROVIDERS": settings.providers,
        "DEFAULT_AI_PROVIDER": provider,
        "DEFAULT_AI_MODEL": model,
        "CURSOR_SECRET": data.secret("cursor"),
    }
    if not settings.auth_jwks_url:
        defaults["AUTH_JWT_SECRET"] = data.secret("auth_jwt")
    return {
        **defaults,
        **inherited(),
        "DATABASE_URL": backends.database_url,
        "NATS_URL": backends.nats_url,
        "LOCAL_BASE_URL": backends.local_base_url,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'proto' / 'gen'}",
        "PYTHONUNBUFFERED": "1",
        RUNNER_VARIABLE: str(data.path),
    }


def default_model(settings: Settings) -> tuple[str, str]:
    """The provider and model of a session that names none: the first provider with a key, else the local model."""
    provider = settings.default_ai_provider or next(iter(settings.keyed_providers), "local")
    return provider, settings.default_ai_model or {**DEFAULT_MODELS, "local": LOCAL_MODEL}.get(provider, "")


def services(settings: Settings, env: dict[str, str]) -> Iterator[Child]:
    """The project's own processes, wired to each other on free ports."""
    billings = [f"{LOOPBACK}:{free_port()}" for _ in range(settings.billings)]
    chats = [f"{LOOPBACK}:{free_port()}" for _ in range(settings.chats)]
    env = {**env, "CHAT_ADDRESS": _target(chats), "BILLING_ADDRESS": _target(billings)}
    for name, address in _numbered("billing", billings):
        yield _service(name, "services.billing", {**env, "BILLING_LISTEN": address}, CORE)
    for name, address in _numbered("chat", chats):
        yield _service(name, "services.chat", {**env, "CHAT_LISTEN": address}, CORE)
    for name, _ in _numbered("agent", range(settings.agents)):
        yield _service(name, "services.agent", {**env, "AGENT_LISTEN": f"{LOOPBACK}:{free_port()}"}, EDGE)
    for name, offset in _numbered("gateway", range(settings.gateways)):
        port = str(settings.gateway_port + offset)
        yield _service(name, "gateway", {**env, "GATEWAY_HOST": settings.gateway_host, "GATEWAY_PORT": port}, EDGE)


def _target(addresses: list[str]) -> str:
    return addresses[0] if len(addresses) == 1 else f"ipv4:{','.join(addresses)}"


def _numbered(name: str, items: Iterable[T]) -> Iterator[tuple[str, T]]:
    """name for a single one, name.1, name.2 … for more."""
    listed = list(items)
    for number, item in enumerate(listed, start=1):
        yield (name if len(listed) == 1 else f"{name}.{number}"), item


def _service(name: str, module: str, env: dict[str, str], stage: int) -> Child:
    hidden = PRIVATE - set(NEEDS[name.split(".")[0]])
    own = {key: value for key, value in env.items() if key not in hidden}
    return Child(name, Command((sys.executable, "-m", module), env=own, folder=ROOT), stage)
