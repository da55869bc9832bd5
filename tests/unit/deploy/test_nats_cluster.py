"""components/nats: its configuration makes three real servers one."""

from __future__ import annotations

import asyncio
import re
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import httpx
import nats.errors
import pytest

from deploy.local.nats import Nats
from deploy.local.server import LOOPBACK, Command, Server, bare_environment, free_port
from deploy.manifests import K8S
from services.kit.bus import JOBS_CONSUMER, JOBS_STREAM, JOBS_SUBJECT, Bus
from tests.integration.waiting import until

CONFIG = K8S / "components" / "nats" / "nats.conf"
PASSWORD = "pAssw0rdOfLettersAndDigits"
SERVERS = 3


class NatsServer(Server):
    """One of the three, with ports, folders and peers of its own instead of a pod's."""

    name: ClassVar[str] = "nats"

    def __init__(self, folder: Path, number: int, routes: list[int]) -> None:
        super().__init__(folder)
        self._number, self._routes, self._monitor = number, routes, free_port()

    @property
    def url(self) -> str:
        """For clients, without the user."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def command(self) -> Command:
        """nats-server in the foreground."""
        binary = str(Path(sysconfig.get_path("scripts")) / "nats-server")
        told = {"SERVER_NAME": f"nats-{self._number}", "NATS_PASSWORD": PASSWORD}
        argv = (binary, "--config", str(self.folder / "nats.conf"), "--addr", LOOPBACK)
        return Command(argv, env={**bare_environment(), **told}, folder=self.folder)

    def prepare(self) -> None:
        """Write its configuration."""
        super().prepare()
        text = re.sub(
            r"nats-(\d)\.nats-peers:6222", lambda match: f"{LOOPBACK}:{self._routes[int(match[1])]}", CONFIG.read_text()
        )
        for old, new in (
            ("port: 4222", f"port: {self.port}"),
            ("http_port: 8222", f"http_port: {self._monitor}"),
            ("port: 6222", f"port: {self._routes[self._number]}"),
            ("/tmp/nats.pid", str(self.folder / "pid")),
            ("store_dir: /data", f"store_dir: {self.folder / 'data'}"),
        ):
            assert old in text
            text = text.replace(old, new)
        (self.folder / "nats.conf").write_text(text)

    def is_ready(self) -> bool:
        """At once: the servers of a cluster wait for each other, see `is_healthy`."""
        return True

    async def is_healthy(self) -> bool:
        """Whether JetStream has a leader and this server follows it."""
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"http://{LOOPBACK}:{self._monitor}/healthz")).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[NatsServer]]:
    routes = [free_port() for _ in range(SERVERS)]
    with ExitStack() as running:
        yield [running.enter_context(NatsServer(tmp_path / str(number), number, routes)) for number in range(SERVERS)]


async def connect(bus: Bus) -> None:
    """Dial, and wait until it is answered."""
    joined = asyncio.Event()
    bus.on_connect(joined.set)
    bus.start()
    await asyncio.wait_for(joined.wait(), 10)


async def test_three_servers_keep_a_stream_for_who_knows_the_password(servers: list[NatsServer]) -> None:
    for server in servers:
        await until(server.is_healthy, within=30)
    here, there = (Bus(f"nats://backendai:{PASSWORD}@{server.url}", name="test") for server in servers[:2])
    for bus in (here, there):
        await connect(bus)
    await here.ensure_jobs()
    stream = await there.js.stream_info("JOBS")
    assert stream.cluster is not None
    assert stream.cluster.name == "backendai"
    for bus in (here, there):
        await bus.close()


async def test_the_queue_of_three_servers_outlives_any_of_them(servers: list[NatsServer]) -> None:
    """Its leader is killed; a wake-up that was sent before is found, and one that is sent afterwards."""
    for server in servers:
        await until(server.is_healthy, within=30)
    bus = Bus(
        ",".join(f"nats://backendai:{PASSWORD}@{server.url}" for server in servers), name="test", replicas=SERVERS
    )
    await connect(bus)
    leader = await until(lambda: leader_of_the_queue(bus, followers=2), within=30)
    await bus.js.publish(JOBS_SUBJECT, b"before")
    servers[int(leader.removeprefix("nats-"))].kill()
    assert await until(lambda: leader_of_the_queue(bus, followers=1), within=30) != leader
    await bus.js.publish(JOBS_SUBJECT, b"after")
    pulling = await bus.js.pull_subscribe_bind(JOBS_CONSUMER, JOBS_STREAM)
    assert [message.data for _ in range(2) for message in await pulling.fetch(1, timeout=10)] == [b"before", b"after"]
    await bus.close()


async def leader_of_the_queue(bus: Bus, *, followers: int) -> str:
    """Who leads it, once it is kept by all and so many others have all of it; "" before."""
    try:
        await bus.ensure_jobs()
        stream = await bus.js.stream_info(JOBS_STREAM)
    except (TimeoutError, nats.errors.Error, OSError):
        return ""
    cluster = stream.cluster
    if stream.config.num_replicas != SERVERS or cluster is None or not cluster.leader:
        return ""
    return cluster.leader if sum(bool(peer.current) for peer in cluster.replicas or ()) >= followers else ""


async def test_one_server_keeps_the_queue_alone_whatever_is_asked_for(tmp_path: Path) -> None:
    with Nats(tmp_path) as server:
        bus = Bus(server.url, name="test", replicas=SERVERS)
        await connect(bus)
        await bus.ensure_jobs()
        await bus.ensure_events()
        await bus.ensure_status()
        assert (await bus.js.stream_info(JOBS_STREAM)).config.num_replicas == 1
        await bus.close()


async def test_who_does_not_know_the_password_is_not_let_in(servers: list[NatsServer]) -> None:
    await until(servers[0].is_healthy, within=30)
    reader, writer = await asyncio.open_connection(LOOPBACK, servers[0].port)
    writer.write(b'CONNECT {"user": "backendai", "pass": "guess"}\r\nPING\r\n')
    said = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    assert b"Authorization Violation" in said
    assert b"PONG" not in said
