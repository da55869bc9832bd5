"""The real server on a real port: what only bytes on a connection can try."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from backendai.chat.v1 import chat_pb2

from gateway.server import Gateway, listen
from tests.servers import Nats
from tests.unit.gateway.conftest import FakeServices, served, settings_for, until
from tests.unit.gateway.raw import exchange, read_answer
from tests.unit.gateway.samples import CHATS, MESSAGES, WORKSPACE, a_message, a_task, token

AUTH = f"Host: x\r\nAuthorization: Bearer {token()}\r\n"


@pytest.fixture
async def port(gateway: Gateway) -> AsyncIterator[int]:
    async with served(gateway) as port:
        yield port


@pytest.mark.parametrize(
    "target",
    ["//", "/%2e%2e%2fetc", "/api/%00", "/%ff", "/../..", "/a%2Fb", f"/api/workspaces/{WORKSPACE}/chats/%00/", "*"],
)
async def test_strange_paths_are_404(port: int, target: str) -> None:
    answer = await exchange(port, f"GET {target} HTTP/1.1\r\n{AUTH}\r\n".encode())
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    "data",
    [
        b"rubbish\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FOO / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_not_http_is_a_problem_too(port: int, data: bytes) -> None:
    answer = await exchange(port, data)
    assert (answer.status, answer.code) == (400, "bad_request")
    assert answer.headers["connection"] == "close"


async def test_trace_is_405(port: int) -> None:
    answer = await exchange(port, f"TRACE {CHATS} HTTP/1.1\r\n{AUTH}\r\n".encode())
    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD, POST")


async def test_a_64_kib_token_is_431(port: int) -> None:
    answer = await exchange(port, b"GET / HTTP/1.1\r\nAuthorization: Bearer " + b"x" * 65_536 + b"\r\n\r\n")
    assert (answer.status, answer.code) == (431, "headers_too_large")


async def test_an_url_of_5000_emoji_is_read_and_a_longer_one_is_414(port: int) -> None:
    fits = f"{CHATS}?text={'%F0%9F%98%80' * 5_000}"
    assert (await exchange(port, f"GET {fits} HTTP/1.1\r\n{AUTH}\r\n".encode())).status == 200
    for more in (4_500, 15_000):
        answer = await exchange(port, f"GET {fits}{'x' * more} HTTP/1.1\r\n{AUTH}\r\n".encode())
        assert (answer.status, answer.code) == (414, "uri_too_long")


@pytest.mark.parametrize("endless", [b"x" * 1_000, b"x: y\r\n" * 100], ids=["one header", "many headers"])
async def test_a_head_without_end_is_cut_off(port: int, endless: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nx: ")
    sent = 0
    while not reader._buffer and sent < 2**22:  # type: ignore[attr-defined]
        writer.write(endless)
        sent += len(endless)
        await asyncio.sleep(0)
    answer = await read_answer(reader)
    writer.close()
    assert (answer.status, answer.code) == (431, "headers_too_large")
    assert sent < 2**21


async def test_a_head_that_never_ends_in_time_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.protocol.HEAD_SECONDS", 0.1)
    for beginning in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost:"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(beginning)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_a_kept_connection_serves_many_requests(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET {CHATS} HTTP/1.1\r\n{AUTH}\r\n".encode()
    writer.write(request * 3)  # pipelined
    assert [(await read_answer(reader)).status for _ in range(3)] == [200] * 3
    for _ in range(3):
        writer.write(request[:40])
        await writer.drain()
        writer.write(request[40:])
        assert (await read_answer(reader)).status == 200
    writer.close()


POST = f"POST {CHATS} HTTP/1.1\r\n{AUTH}Content-Type: application/json\r\n"


async def test_a_body_that_is_declared_too_large_is_413_before_it_is_sent(port: int) -> None:
    answer = await exchange(port, f"{POST}Content-Length: 1048577\r\nExpect: 100-continue\r\n\r\n".encode())
    assert (answer.status, answer.code) == (413, "payload_too_large")


async def test_a_body_that_grows_too_large_while_it_streams_is_413(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode())
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    for _ in range(17):
        writer.write(chunk)
        await writer.drain()
    async with asyncio.timeout(5):
        answer = await read_answer(reader)
    writer.close()
    assert (answer.status, answer.code) == (413, "payload_too_large")


async def test_a_body_that_does_not_come_in_time_is_408(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.bodies.RECEIVE_SECONDS", 0.1)
    answer = await exchange(port, f'{POST}Content-Length: 10\r\n\r\n{{"a"'.encode())
    assert (answer.status, answer.code) == (408, "request_timeout")


async def test_who_hangs_up_in_the_middle_of_a_body_breaks_nothing(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f'{POST}Content-Length: 10\r\n\r\n{{"a"'.encode())
    await writer.drain()
    writer.close()
    assert (await exchange(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_an_upgrade_that_nobody_offers_is_answered_as_plain_http(port: int) -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    answer = await exchange(port, f"GET {CHATS} HTTP/1.1\r\n{AUTH}{upgrade}\r\n".encode())
    assert answer.status == 200


async def test_readiness_tells_of_each_part_and_requires_all_but_nats(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        ready = await client.get("/readyz")
    assert ready.json() == {"status": "ready", "chat": "serving", "billing": "serving", "nats": "disconnected"}


async def test_a_port_in_use_is_a_sentence() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(SystemExit, match="is in use"):
        listen("127.0.0.1", taken.getsockname()[1])


async def test_a_stopping_gateway_answers_who_is_there_and_tells_them_to_go(
    services: FakeServices, nats_server: Nats
) -> None:
    services.answers["SendMessage"] = lambda request: chat_pb2.SendMessageResponse(
        task=a_task(id=request.task_id), user_message=a_message()
    )
    gateway = Gateway(settings_for(services.address, nats_url=nats_server.url, drain_seconds=2))
    listener, stop = listen("127.0.0.1", 0), asyncio.Event()
    serving = asyncio.create_task(gateway.serve(listener, stop))
    await until(lambda: gateway.bus.connected)
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=base, headers={"Authorization": f"Bearer {token()}"}, timeout=10) as client:
        waiting = asyncio.create_task(client.post(MESSAGES, json={"content": "x"}))
        await until(lambda: services.requests("SendMessage"))
        started = time.monotonic()
        stop.set()
        late = await client.get(CHATS)
        probe = await client.get("/readyz")
        answer = await waiting
    await serving
    assert (late.status_code, late.headers["connection"]) == (200, "close")
    assert probe.status_code == 503
    assert (answer.status_code, answer.headers["connection"]) == (202, "close")
    assert time.monotonic() - started < 4
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", listener.getsockname()[1] if listener.fileno() != -1 else 1)
