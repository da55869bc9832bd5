"""Requests that offer to upgrade the connection: the gateway ignores the offer and reads the body as usual."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from backendai.chat.v1 import chat_pb2

from gateway.server import Gateway
from tests.unit.gateway.conftest import FakeServices, served
from tests.unit.gateway.raw import exchange, read_answer
from tests.unit.gateway.samples import CHATS, a_session, token

AUTH = f"Host: x\r\nAuthorization: Bearer {token()}\r\n"
BODY = b'{"name": "Holidays"}'
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
OFFERS = [
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n",
    "upgrade: h2c, TLS/1.3\r\nCONNECTION:keep-alive,\tUPGRADE\r\n",
    "Connection: keep-alive\r\nConnection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n",
]
FRAMINGS = {
    "length": (f"Content-Length: {len(BODY)}\r\n", BODY),
    "chunks": (
        "Transfer-Encoding: chunked\r\n",
        b"4\r\n" + BODY[:4] + b"\r\n%x\r\n" % len(BODY[4:]) + BODY[4:] + b"\r\n0\r\n\r\n",
    ),
}


@pytest.fixture
async def port(gateway: Gateway, services: FakeServices) -> AsyncIterator[int]:
    services.answers["CreateSession"] = chat_pb2.CreateSessionResponse(session=a_session())
    async with served(gateway) as port:
        yield port


def post(offer: str, framing: str) -> tuple[bytes, bytes]:
    """A request's head and body."""
    length, body = FRAMINGS[framing]
    head = f"POST {CHATS} HTTP/1.1\r\n{AUTH}Content-Type: application/json\r\n{offer}{length}\r\n"
    return head.encode(), body


async def send_in_packets(port: int, packets: list[bytes]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and send the packets. Each is sent after the gateway has read the one before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for packet in packets:
        writer.write(packet)
        await writer.drain()
        # The gateway runs in this event loop, so it has read the packet once it has answered another connection.
        await exchange(port, HEALTH)
    return reader, writer


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("cut", ["nowhere", "behind the head", "in the head", "in the body"])
async def test_a_request_that_offers_an_upgrade_keeps_its_body(
    port: int, services: FakeServices, offer: str, framing: str, cut: str
) -> None:
    head, body = post(offer, framing)
    data = head + body + HEALTH
    at = {
        "nowhere": len(data),
        "behind the head": len(head),
        "in the head": len(head) - 3,
        "in the body": len(head) + 9,
    }
    reader, writer = await send_in_packets(port, [data[: at[cut]], data[at[cut] :]])
    answers = [await read_answer(reader), await read_answer(reader)]
    writer.close()
    assert [answer.status for answer in answers] == [201, 200]
    assert "connection" not in answers[0].headers
    (asked,) = services.requests("CreateSession")
    assert asked.settings.name == "Holidays"


async def test_requests_with_offers_are_served_in_their_order(port: int, services: FakeServices) -> None:
    reader, writer = await send_in_packets(
        port, [b"".join(b"".join(post(offer, "length")) for offer in OFFERS) + HEALTH]
    )
    assert [(await read_answer(reader)).status for _ in range(len(OFFERS) + 1)] == [201] * len(OFFERS) + [200]
    writer.close()
    assert [asked.settings.name for asked in services.requests("CreateSession")] == ["Holidays"] * len(OFFERS)


async def test_many_requests_with_offers_in_one_packet_cost_no_more_than_others(port: int) -> None:
    one = b"GET /healthz HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(one * 2_000)
    assert {(await read_answer(reader)).status for _ in range(2_000)} == {200}
    writer.close()


async def test_a_connection_that_its_client_wants_closed_is_closed_after_the_answer(
    port: int, services: FakeServices
) -> None:
    head, body = post("Connection: close, Upgrade\r\nUpgrade: h2c\r\n", "length")
    reader, writer = await send_in_packets(port, [head, body])
    answer = await read_answer(reader)
    assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert await reader.read() == b""
    writer.close()
    assert services.requests("CreateSession")[0].settings.name == "Holidays"


async def test_a_client_that_waits_before_its_body_is_asked_for_it(port: int, services: FakeServices) -> None:
    head, body = post(f"{OFFERS[0]}Expect: 100-continue\r\n", "length")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await read_answer(reader)).status == 201
    writer.close()
    assert services.requests("CreateSession")[0].settings.name == "Holidays"


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: +1\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
    ],
)
async def test_an_offer_hides_no_framing_that_two_servers_could_read_differently(
    port: int, services: FakeServices, framing: str
) -> None:
    head = f"POST {CHATS} HTTP/1.1\r\n{AUTH}Content-Type: application/json\r\n{OFFERS[0]}{framing}\r\n"
    answer = await exchange(port, head.encode() + b"2\r\n{}\r\n0\r\n\r\n")
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "bad_request", "close")
    assert not services.requests("CreateSession")


@pytest.mark.parametrize("offer", OFFERS)
async def test_a_head_with_an_offer_is_bounded_like_others(port: int, offer: str) -> None:
    head = f"GET {CHATS} HTTP/1.1\r\n{offer}x: {'x' * 20_000}\r\n\r\n"
    answer = await exchange(port, head.encode())
    assert (answer.status, answer.code) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\4\0\0\0\0\0\0\3\0\0\0d\0\4\0\xa0\0\0\0\2\0\0\0\0",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n\x16\x03\x01",
        b"CONNECT x:443 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
    ],
    ids=["HTTP/2 at once", "a tunnel", "a tunnel with an offer"],
)
async def test_another_protocol_is_a_problem_and_nothing_of_it_is_read(
    port: int, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await read_answer(reader)
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "bad_request", "close")
    assert await reader.read() == b""
    writer.close()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("offer", ["", OFFERS[0]])
async def test_nothing_is_read_behind_a_connect(port: int, offer: str) -> None:
    reader, writer = await send_in_packets(port, [f"CONNECT {CHATS} HTTP/1.1\r\n{offer}\r\n".encode() + HEALTH, HEALTH])
    answer = await read_answer(reader)
    assert (answer.status, answer.code, answer.headers["connection"]) == (405, "method_not_allowed", "close")
    assert await reader.read() == b""
    writer.close()
