"""The connection to NATS comes back, whatever ended it, and with it what was subscribed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from deploy.local.server import LOOPBACK, free_port
from gateway.settings import Settings as GatewaySettings
from services.agent.settings import AgentSettings
from services.chat.settings import Settings as ChatSettings
from services.kit.bus import FIRST_DIAL_WAIT_SECONDS, Bus
from services.kit.nats_url import Endpoint, InvalidNatsUrl, parse
from tests.nats_accounts import IN_URL, PASSWORD, USER, NatsWithPassword
from tests.proxy import Proxy

WITHIN_SECONDS = 5.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsWithPassword]:
    """One that a test may do anything to."""
    with NatsWithPassword(tmp_path / "nats") as server:
        yield server


@asynccontextmanager
async def started(url: str) -> AsyncIterator[Bus]:
    """A bus that dials."""
    bus = Bus(url, name="test")
    bus.start()
    yield bus
    await bus.close()


async def until(check: Callable[[], bool]) -> None:
    """Wait for what must come within seconds."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while not check():  # noqa: ASYNC110 (the condition is another program's)
            await asyncio.sleep(0.01)


class Heard:
    """What came on a subject."""

    def __init__(self) -> None:
        self.words: list[bytes] = []

    async def hear(self, message: Msg) -> None:
        """Keep it."""
        self.words.append(message.data)


async def hears(bus: Bus, heard: Heard, word: bytes) -> None:
    """Wait until the bus carries again, there and back."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while word not in heard.words:
            await bus.publish("news", word)
            await asyncio.sleep(0.02)


async def test_a_password_that_is_changed_and_changed_back_five_times_costs_seconds(server: NatsWithPassword) -> None:
    async with started(server.url) as bus:
        heard, early = Heard(), Heard()
        await bus.listen("news", early.hear)
        await until(lambda: bus.connected)
        assert await bus.subscribe("news", heard.hear) is not None
        connections: list[Client] = []
        bus.on_connect(lambda: connections.append(bus.client))
        for number in range(5):
            server.change(password="another")
            await until(lambda: not bus.connected)
            assert await bus.subscribe("news", heard.hear) is None
            server.change(password=PASSWORD)
            await until(lambda: bus.connected)
            await hears(bus, heard, str(number).encode())
        assert len(connections) == 5
        assert set(heard.words) == set(early.words) == {b"0", b"1", b"2", b"3", b"4"}


async def test_a_restart_with_another_password_and_back_is_survived(server: NatsWithPassword) -> None:
    async with started(server.url) as bus:
        await until(lambda: bus.connected)
        await asyncio.to_thread(server.stop)
        server._password = "another"
        await asyncio.to_thread(server.start)
        await until(lambda: not bus.connected)
        server.change(password=PASSWORD)
        await until(lambda: bus.connected)


async def test_too_many_connections_are_waited_out(server: NatsWithPassword) -> None:
    async with started(server.url) as bus:
        await until(lambda: bus.connected)
        server.change(limits="max_connections: 1")
        other = await nats.connect(server.url.replace(IN_URL, "x"), password=PASSWORD, user=USER)
        await bus.client.close()  # and its place is taken
        await until(lambda: not bus.connected)
        await asyncio.sleep(0.3)
        assert not bus.connected
        await other.close()
        await until(lambda: bus.connected)


@pytest.mark.parametrize(
    "words",
    [
        "User Authentication Expired",
        "User Authentication Revoked",
        "Account Authentication Expired",
        "Authorization Violation",
        "Authentication Timeout",
        "maximum connections exceeded",
        "maximum account active connections exceeded",
        "Slow Consumer",
        "Stale Connection",
        "Secure Connection - TLS Required",
        "Maximum Payload Violation",
        "Unknown Protocol Operation",
    ],
)
async def test_whatever_the_server_says_when_it_ends_a_connection_another_one_is_made(words: str) -> None:
    greeted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"headers":true}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
                greeted += 1
                if greeted <= 3:
                    writer.write(f"-ERR '{words}'\r\n".encode())
                    break
        else:
            writer.close()
            return
        await writer.drain()
        writer.close()

    port = free_port()
    server = await asyncio.start_server(serve, LOOPBACK, port)
    async with started(f"nats://{LOOPBACK}:{port}") as bus:
        await until(lambda: greeted > 3 and bus.connected)
    server.close()


async def test_a_server_that_ends_each_connection_at_once_is_dialled_with_pauses() -> None:
    greeted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"headers":true}\r\n')
        while line := await reader.readline():
            if line.startswith(b"PING"):
                greeted += 1
                writer.write(b"PONG\r\n-ERR 'Slow Consumer'\r\n")
                break
        await writer.drain()
        writer.close()

    port = free_port()
    server = await asyncio.start_server(serve, LOOPBACK, port)
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    async with started(f"nats://{LOOPBACK}:{port}"):
        await until(lambda: greeted > 10)
        assert loop.time() - began_at > 10 * FIRST_DIAL_WAIT_SECONDS / 2
    server.close()


async def test_closing_ends_although_a_cancellation_of_the_dial_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    dials = 0

    async def lose_the_first_cancellation(_client: Client, *_given: object, **_options: object) -> None:
        nonlocal dials
        dials += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if dials > 1:
                raise

    monkeypatch.setattr(Client, "connect", lose_the_first_cancellation)
    bus = Bus(f"nats://{LOOPBACK}:{free_port()}", name="test")
    bus.start()
    await until(lambda: dials == 1)
    async with asyncio.timeout(WITHIN_SECONDS):
        await bus.close()


async def test_a_connection_that_is_cut_off_in_silence_is_noticed_and_made_again(server: NatsWithPassword) -> None:
    async with Proxy(server.port) as proxy, started(server.url.replace(f":{server.port}", f":{proxy.port}")) as bus:
        await until(lambda: bus.connected)
        before = bus.client
        proxy.forget()
        async with asyncio.timeout(10):
            while bus.client is before:
                await bus.publish("news", b"x" * 100_000)
                await asyncio.sleep(0.02)
        assert bus.connected


async def test_why_it_is_not_connected_is_logged_once(server: NatsWithPassword) -> None:
    with structlog.testing.capture_logs() as logs:
        async with started(server.url) as bus:
            await until(lambda: bus.connected)
            server.change(password="another")
            await until(lambda: not bus.connected)
            await asyncio.sleep(1.5)  # several tries
            server.change(password=PASSWORD)
            await until(lambda: bus.connected)
    (unreachable,) = [entry for entry in logs if entry["event"] == "nats_unreachable"]
    assert "uthorization" in unreachable["reason"]
    assert PASSWORD not in str(logs)
    assert IN_URL not in str(logs)


async def test_of_several_servers_the_one_that_is_there_is_found(server: NatsWithPassword) -> None:
    async with started(f" nats://{LOOPBACK}:{free_port()} ,\n{server.url}") as bus:
        await until(lambda: bus.connected)


def test_a_url_is_read_with_its_blanks_its_list_and_its_escapes() -> None:
    assert parse(f" nats://me:{IN_URL}@a:1 ,tls://b, c:3\n,nats://token@[::1],") == [
        Endpoint("nats://a:1", "me", PASSWORD),
        Endpoint("tls://b:4222"),
        Endpoint("nats://c:3"),
        Endpoint("nats://[::1]:4222", "token"),
    ]


WRONG = [
    "http://me:s3cret@a",
    "nats://me:s3cret/x@a",
    "nats://me:s3cret x@a",
    "nats://me:s3cret\nx@a",
    "nats://me:s3cret@a:none",
    "nats://me:s3cret@a:0",
    "nats://me:s3cret@",
    "nats://me:s3cret@a?x=1",
    ",",
]


@pytest.mark.parametrize("given", WRONG)
def test_what_is_no_url_ends_the_start_by_the_settings_name(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    with pytest.raises(InvalidNatsUrl) as refused:
        parse(given)
    monkeypatch.setenv("DATABASE_URL", "postgresql://somewhere/x")
    monkeypatch.setenv("NATS_URL", given)
    for kind in (AgentSettings, ChatSettings, GatewaySettings):
        with pytest.raises(SystemExit) as ended:
            kind.read()
        assert str(ended.value).startswith("NATS_URL: ")
        assert "s3cret" not in str(ended.value) + str(refused.value)


def test_the_settings_do_not_show_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://me:s3cret@a:4222")
    assert "s3cret" not in repr(AgentSettings())
    assert parse(AgentSettings().nats_url) == [Endpoint("nats://a:4222", "me", "s3cret")]
