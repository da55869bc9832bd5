"""Postgres and NATS for the tests, from containers or from wheels: the same servers to a test, by one switch.

TEST_SERVERS=containers asks for containers and `wheels` for wheels. `auto`, which holds when it is unset, takes
containers where a Docker engine answers that has the images or gets them soon, and wheels everywhere else.
"""

from __future__ import annotations

import gc
import secrets
import signal
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeAlias, cast, get_args

from deploy.local import nats, postgres
from deploy.local.nats import greets
from deploy.local.postgres import ROLE, Databases
from deploy.local.server import LOOPBACK, POLL_SECONDS, free_port

Source: TypeAlias = Literal["containers", "wheels"]

POSTGRES_IMAGE, NATS_IMAGE = "postgres:18", "nats:2.12"
ENGINE_SECONDS = 3.0
# How long images may take to come before a run without them begins.
PULL_SECONDS = 90.0
# A registry that says nothing for so long is taken for one that can't be reached.
SILENCE_SECONDS = 15.0

# Where this run has its servers from, chosen once by `choose`; what runs outside pytest has wheels.
_source: Source = "wheels"
_made: list[Container] = []


class Unavailable(Exception):
    """There are no containers to be had here, and why."""


def choose(asked: str) -> str:
    """Settle where servers come from, and say so in a few words. Unavailable when containers alone would do."""
    global _source
    if asked not in ("auto", *get_args(Source)):
        raise Unavailable(f"{asked!r} is none of auto, containers and wheels")
    _source = "wheels"
    if asked == "wheels":
        return "wheels"
    reason = _why_not()
    if reason and asked == "containers":
        raise Unavailable(reason)
    if reason:
        return f"wheels ({reason})"
    _source = "containers"
    return f"containers ({POSTGRES_IMAGE}, {NATS_IMAGE})"


def new_postgres(folder: Path, *, settings: Mapping[str, str] | None = None) -> Postgres:
    """A PostgreSQL server that is not started yet; its URL is known already."""
    if _source == "containers":
        return PostgresContainer(folder, settings=settings)
    server = postgres.Postgres(folder, settings=settings)
    server.prepare()  # which makes its password
    return server


def new_nats(folder: Path) -> Nats:
    """A NATS server that is not started yet; its URL is known already."""
    return NatsContainer(folder) if _source == "containers" else nats.Nats(folder)


def remove_all() -> None:
    """Remove the containers that are left."""
    while _made:
        _made[-1].remove()


class Container(ABC):
    """A server that can be killed and started again, on one port and with its files, as one from a wheel can."""

    name: ClassVar[str]
    image: ClassVar[str]
    inner_port: ClassVar[int]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._container = self._make()
        host = self._container.get_docker_client().host()
        self.host = LOOPBACK if host == "localhost" else host
        # A fixed port, which it keeps when it starts again; open to the network only where the engine is elsewhere.
        self._container.ports[f"{self.inner_port}/tcp"] = (LOOPBACK if self.host == LOOPBACK else "", self.port)
        self._exists = False
        _made.append(self)

    def _make(self) -> Any:
        from testcontainers.core.container import DockerContainer

        return DockerContainer(self.image).with_command(self.arguments).with_envs(**self.environment)

    @property
    @abstractmethod
    def arguments(self) -> list[str]:
        """Of the image's program."""

    @property
    def environment(self) -> dict[str, str]:
        """Of the container."""
        return {}

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers now."""

    def start(self, within_seconds: float = 60.0) -> None:
        """Run it and wait until it answers."""
        if self._exists:
            self._engine.start()
        else:
            self._container.start()
            self._exists = True
        deadline = time.monotonic() + within_seconds
        while not self.is_ready():
            assert self._runs(), f"{self.name} ended: {self._said()}"
            assert time.monotonic() < deadline, f"{self.name} did not start: {self._said()}"
            time.sleep(POLL_SECONDS)

    def stop(self, within_seconds: float = 10.0) -> None:
        """Ask it to end and wait; kill it past the time."""
        if self._exists and self._runs():
            self._engine.kill(self.stop_signal.name)
            deadline = time.monotonic() + within_seconds
            while self._runs():
                if time.monotonic() > deadline:
                    self.kill()
                time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._exists and self._runs():
            self._engine.kill()
            self._engine.wait()

    def remove(self) -> None:
        """Leave nothing of it but its words, in `folder`/log."""
        if self not in _made:
            return
        _made.remove(self)
        if self._exists:
            self._exists = False
            with suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "log").write_text(self._said())
        self._container.stop()

    @property
    def pid(self) -> int:
        """Of the running process, on the engine's machine."""
        self._engine.reload()
        return int(self._engine.attrs["State"]["Pid"])

    @property
    def _engine(self) -> Any:
        """The container, as the engine knows it."""
        return self._container.get_wrapped_container()

    def _runs(self) -> bool:
        self._engine.reload()
        return cast(bool, self._engine.status == "running")

    def _said(self) -> str:
        return cast(bytes, self._engine.logs()).decode(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.remove()


class PostgresContainer(Databases, Container):
    """PostgreSQL's own image."""

    name, image, inner_port = "postgres", POSTGRES_IMAGE, 5432
    stop_signal = signal.SIGINT  # its fast shutdown, which ends sessions

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._password = secrets.token_urlsafe(24)
        self._settings = {"max_connections": "200", "log_min_messages": "fatal", **(settings or {})}
        super().__init__(folder)

    @property
    def arguments(self) -> list[str]:
        """Settings for this run."""
        return [option for name, value in self._settings.items() for option in ("-c", f"{name}={value}")]

    @property
    def environment(self) -> dict[str, str]:
        """Who may come in, and the sort order that a wheel's cluster has."""
        order = "--encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
        return {"POSTGRES_USER": ROLE, "POSTGRES_PASSWORD": self._password, "POSTGRES_INITDB_ARGS": order}

    @property
    def url(self) -> str:
        """The database that is there from the start."""
        return self.url_of(ROLE)

    def url_of(self, database: str) -> str:
        """The URL of a database of this server."""
        return f"postgresql://{ROLE}:{self._password}@{self.host}:{self.port}/{database}"


class NatsContainer(Container):
    """NATS' own image, with JetStream."""

    name, image, inner_port = "nats", NATS_IMAGE, 4222

    @property
    def arguments(self) -> list[str]:
        """JetStream, with its files inside."""
        return ["--jetstream", "--store_dir", "/tmp/nats"]

    @property
    def url(self) -> str:
        """nats://host:port."""
        return f"nats://{self.host}:{self.port}"

    def is_ready(self) -> bool:
        """Whether it greets."""
        return greets(self.host, self.port)

    def wipe(self) -> None:
        """Lose every stream and bucket; while it is down."""
        port = self._container.ports
        self.remove()
        self._container = self._make()
        self._container.ports = port
        _made.append(self)


Postgres: TypeAlias = postgres.Postgres | PostgresContainer
Nats: TypeAlias = nats.Nats | NatsContainer


def _why_not() -> str | None:
    """Why there are no containers here, if there are none."""
    with warnings.catch_warnings():
        # A client that reaches no engine leaves its socket to the garbage collector, which must not find it in a test.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            _get_images()
            return None
        except Unavailable as unavailable:
            return str(unavailable)
        finally:
            gc.collect()


def _get_images() -> None:
    """Have the engine get what it lacks, or Unavailable."""
    import docker
    from testcontainers.core.config import testcontainers_config as config
    from testcontainers.core.docker_client import DockerClient

    try:
        engine = DockerClient(timeout=ENGINE_SECONDS).client
        engine.ping()
    except (docker.errors.DockerException, OSError):
        raise Unavailable("no Docker engine answers") from None
    images = [config.hub_image_name_prefix + name for name in (POSTGRES_IMAGE, NATS_IMAGE)]
    if not config.ryuk_disabled:
        images.append(config.ryuk_image)
    deadline = time.monotonic() + PULL_SECONDS
    try:
        for image in images:
            _get_image(engine, image, deadline)
    finally:
        engine.close()


def _get_image(engine: Any, image: str, deadline: float) -> None:
    import docker

    try:
        engine.images.get(image)
        return
    except docker.errors.ImageNotFound:
        pass
    engine.api.timeout = SILENCE_SECONDS
    try:
        for news in engine.api.pull(*image.rsplit(":", 1), stream=True, decode=True):
            if "error" in news:
                raise Unavailable(f"{image} can't be pulled")
            if time.monotonic() > deadline:
                raise Unavailable(f"{image} did not come within {PULL_SECONDS:g} s")
    except (docker.errors.DockerException, OSError):
        raise Unavailable(f"{image} can't be pulled") from None
