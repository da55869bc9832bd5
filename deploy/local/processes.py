"""Which processes run, and what each is told: what it needs, and no secret beyond that."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, repeat

from deploy.local.ai import MODEL as LOCAL_MODEL
from deploy.local.runner import Child
from deploy.local.server import LOOPBACK, Command, free_port
from deploy.local.settings import DEFAULT_MODELS, ROOT, TRANSLATORS, Settings, inherited
from deploy.local.state import RUNNER_VARIABLE, DataDirectory

EDGE, CORE, SERVERS = range(3)  # the order in which they stop: who calls before who is called

# Those that others call, and so must be told where to find.
CALLED = ("billing", "chat", "speech", "translate")

# Only the processes named here see these.
NEEDS = {
    "gateway": ("AUTH_JWT_SECRET", "CURSOR_SECRET", "NATS_URL"),
    "chat": ("DATABASE_URL", "NATS_URL"),
    "billing": ("DATABASE_URL",),
    "agent": ("NATS_URL", *(f"{name.upper()}_API_KEY" for name in DEFAULT_MODELS)),
    "speech": ("OPENAI_API_KEY",),
    "translate": tuple(f"{name.upper()}_API_KEY" for name in TRANSLATORS),
}
# Of migrations alone.
MIGRATION_DATABASE_URL = "MIGRATION_DATABASE_URL"
PRIVATE = {MIGRATION_DATABASE_URL, *(name for names in NEEDS.values() for name in names)}


@dataclass(frozen=True)
class Backends:
    """The servers that the services lean on, embedded or not."""

    database_url: str
    nats_url: str
    local_base_url: str
    speech_local_base_url: str


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
    given = inherited()
    if settings.database_url is None:  # what it names is not the database that is started here
        given.pop(MIGRATION_DATABASE_URL, None)
    return {
        **defaults,
        **given,
        "DATABASE_URL": backends.database_url,
        "NATS_URL": backends.nats_url,
        "LOCAL_BASE_URL": backends.local_base_url,
        "SPEECH_LOCAL_BASE_URL": backends.speech_local_base_url,
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
    kinds = (
        ("billing", CORE, settings.billings),
        ("chat", CORE, settings.chats),
        ("agent", EDGE, settings.agents),
        ("speech", EDGE, settings.speeches),
        ("translate", EDGE, settings.translates),
    )
    ports = {kind: [free_port() for _ in range(count)] for kind, _stage, count in kinds}
    env = {**env, **{f"{kind.upper()}_ADDRESS": _target(ports[kind]) for kind in CALLED}}
    ops = _ops(settings)
    for name, port in _numbered("gateway", range(settings.gateway_port, settings.gateway_port + settings.gateways)):
        own = {**env, "GATEWAY_HOST": settings.gateway_host, "GATEWAY_PORT": str(port), **next(ops)}
        yield Child(name, _command(settings, "gateway", "gateway", own), EDGE)
    for kind, stage, _count in kinds:
        for name, port in _numbered(kind, ports[kind]):
            own = {**env, f"{kind.upper()}_LISTEN": f"{LOOPBACK}:{port}", **next(ops)}
            yield Child(name, _command(settings, kind, f"services.{kind}", own), stage, port)


def _ops(settings: Settings) -> Iterator[dict[str, str]]:
    """Where each process in turn tells metrics and health: nowhere, or on the ports from the one that is set."""
    if settings.ops_listen is None:
        yield from repeat({})
        return
    host, _, first = settings.ops_listen.rpartition(":")
    for port in count(int(first)):
        yield {"OPS_LISTEN": f"{host}:{port}"}


def _target(ports: list[int]) -> str:
    """A gRPC target of all of them, over which callers go round robin."""
    return f"ipv4:{','.join(f'{LOOPBACK}:{port}' for port in ports)}"


def _numbered(name: str, ports: Sequence[int]) -> Iterator[tuple[str, int]]:
    """name for a single one, name.1, name.2 … for more."""
    for number, port in enumerate(ports, start=1):
        yield (name if len(ports) == 1 else f"{name}.{number}"), port


def _command(settings: Settings, kind: str, module: str, env: dict[str, str]) -> Command:
    hidden = PRIVATE - set(NEEDS[kind])
    own = {name: value for name, value in env.items() if name not in hidden}
    if settings.grpc_tls_dir is not None:
        own["GRPC_TLS_DIR"] = str(settings.grpc_tls_dir.resolve() / kind)
    return Command((sys.executable, "-m", module), env=own, folder=ROOT)
