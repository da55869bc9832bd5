"""Requests that real clients sent, byte for byte: the gateway reads each whole, however it is cut into packets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from backendai.chat.v1 import chat_pb2
from backendai.speech.v1 import speech_pb2

from gateway.server import Gateway
from tests.servers import Nats
from tests.unit.gateway.conftest import FakeServices, served, settings_for, until
from tests.unit.gateway.raw import exchange, read_answer
from tests.unit.gateway.samples import a_completed_task, a_message, a_session, token

RECORDED = {file.stem: file.read_bytes() for file in (Path(__file__).parents[2] / "recorded").glob("*.http")}
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
STATUS = {"preflight": 204, "create": 201, "send": 201, "stream": 200, "upload": 200}
RPC = {"create": "CreateSession", "send": "SendMessage", "stream": "SendMessage", "upload": "Transcribe"}
ORIGIN = re.compile(rb"\r\nOrigin: (\S+)")
AUDIO = re.compile(rb"audio/mpeg\r\n\r\n(.*)\r\n--[^\r]+--\r\n$", re.DOTALL)


def kind_of(name: str) -> str:
    """What the request does."""
    return name.split("-")[1]


def request_of(name: str) -> bytes:
    """The recorded request with a valid token."""
    return RECORDED[name].replace(b"TOKEN", token().encode())


def body_of(name: str) -> bytes:
    """The recorded body, without the frames of chunks."""
    head, _, body = RECORDED[name].partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return body
    whole = b""
    while (size := int(body.partition(b"\r\n")[0], 16)) > 0:
        body = body.partition(b"\r\n")[2]
        whole, body = whole + body[:size], body[size + 2 :]
    return whole


@pytest.fixture
async def port(services: FakeServices, nats_server: Nats) -> AsyncIterator[int]:
    services.answers |= {
        "CreateSession": chat_pb2.CreateSessionResponse(session=a_session()),
        "SendMessage": lambda asked: chat_pb2.SendMessageResponse(
            task=a_completed_task(id=asked.task_id), user_message=a_message()
        ),
        "GetTask": lambda asked: chat_pb2.GetTaskResponse(
            task=a_completed_task(id=asked.task_id), user_message=a_message()
        ),
        "Transcribe": speech_pb2.TranscribeResponse(text="Good morning."),
    }
    origins = {found[1].decode() for data in RECORDED.values() if (found := ORIGIN.search(data))}
    gateway = Gateway(settings_for(services.address, nats_url=nats_server.url, cors_allowed_origins=",".join(origins)))
    async with served(gateway) as port:
        await until(lambda: gateway.bus.connected)
        yield port


def cuts(data: bytes, how: str) -> list[bytes]:
    """The packets in which a request comes."""
    head = data.index(b"\r\n\r\n") + 4
    if how == "head and body":
        return [data[:head], data[head:]]
    step = 997 if how == "small packets" else len(data)
    return [data[at : at + step] for at in range(0, len(data), step)]


def carried(services: FakeServices, kind: str) -> bytes:
    """What came out behind the gateway."""
    (asked,) = services.requests(RPC[kind])
    if kind == "create":
        return str(asked.settings.name).encode()
    if kind == "upload":
        return b"".join(one.chunk for one in asked)
    return str(asked.content).encode()


def expected(name: str) -> bytes:
    """What the client put in."""
    body, kind = body_of(name), kind_of(name)
    if kind == "upload":
        found = AUDIO.search(body)
        assert found is not None
        return found[1]
    document = json.loads(body)
    return str(document["name" if kind == "create" else "content"]).encode()


@pytest.mark.parametrize("how", ["at once", "head and body", "small packets"])
@pytest.mark.parametrize("name", sorted(RECORDED))
async def test_a_recorded_request_is_read_whole_and_answered_once(
    services: FakeServices, port: int, name: str, how: str
) -> None:
    kind, data = kind_of(name), request_of(name)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for packet in cuts(data, how):
        writer.write(packet)
        await exchange(port, HEALTH)  # the gateway has read the packet by then
    answer = await read_answer(reader, has_body=kind != "stream")
    assert answer.status == STATUS[kind]
    found = ORIGIN.search(data)
    assert answer.headers.get("access-control-allow-origin") == (found[1].decode() if found else None)
    assert answer.repeated_headers == []
    if kind == "stream":
        assert b"event: completed" in await reader.readuntil(b"\r\n0\r\n\r\n")
    if kind != "preflight":
        assert carried(services, kind) == expected(name)
    writer.write(HEALTH)
    assert (await read_answer(reader)).body == b'{"status":"ok"}'
    writer.close()


def test_every_kind_of_request_is_recorded_of_a_jdk_and_of_a_browser() -> None:
    assert {"jdk-create", "jdk-send", "jdk-upload", "jdk-upload-in-chunks"} <= RECORDED.keys()
    assert {f"chromium-{kind}" for kind in STATUS} <= RECORDED.keys()
    assert all(b"\r\nUpgrade: " in data for name, data in RECORDED.items() if not name.startswith("chromium"))
