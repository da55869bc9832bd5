"""CORS: pages on the origins that are set read every answer, failures too; others read none."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from backendai.chat.v1 import chat_pb2

from deploy.manifests import K8S
from gateway.cors import METHODS, REQUEST_HEADERS, RESPONSE_HEADERS
from gateway.problems import unavailable
from gateway.server import Gateway
from tests.servers import Nats
from tests.unit.gateway.conftest import FakeServices, served, settings_for
from tests.unit.gateway.raw import Answer, exchange, read_answer
from tests.unit.gateway.samples import CHATS, MESSAGES, STATUS, TRANSLATE, a_completed_task, a_message, a_session, token

PAGE, OTHER, EVIL = "https://app.example.com", "http://localhost:3000", "https://evil.example.com"
LINK = "/api/chats/shared/7c0f6d3e-54a1-4b53-9df7-0a3f6d1c2b4e/"
AUTH = f"Authorization: Bearer {token()}"
PREFLIGHT = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type")
ORIGIN, EXPOSED, VARY = "access-control-allow-origin", "access-control-expose-headers", "vary"
DOCUMENT: dict[str, Any] = json.loads((K8S.parents[1] / "docs" / "openapi.json").read_text())


@asynccontextmanager
async def gateway_of(services: FakeServices, origins: str, **changes: Any) -> AsyncIterator[int]:
    """The port of a gateway that allows these origins."""
    gateway = Gateway(settings_for(services.address, cors_allowed_origins=origins, **changes))
    async with served(gateway) as port:
        yield port


@pytest.fixture
async def port(services: FakeServices) -> AsyncIterator[int]:
    services.answers |= {
        "CreateSession": chat_pb2.CreateSessionResponse(session=a_session()),
        "GetTask": chat_pb2.GetTaskResponse(task=a_completed_task(), user_message=a_message()),
    }
    async with gateway_of(services, f"{PAGE}, {OTHER}") as port:
        yield port


def request(method: str, path: str, *headers: str, origin: str | None = PAGE, body: str = "") -> bytes:
    """A request of a page on this origin."""
    sent = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if origin is not None:
        sent.append(f"Origin: {origin}")
    if body:
        sent += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*sent, "", body]).encode()


def granted(answer: Answer) -> tuple[str | None, str | None]:
    """To which origin it may be shown, and what it varies by."""
    assert answer.repeated_headers == []
    assert "access-control-allow-credentials" not in answer.headers
    return answer.headers.get(ORIGIN), answer.headers.get(VARY)


@pytest.mark.parametrize("path", [CHATS, MESSAGES, STATUS, TRANSLATE, "/healthz", "/nothing/", CHATS.rstrip("/")])
@pytest.mark.parametrize("origin", [PAGE, OTHER])
async def test_a_preflight_needs_no_token_and_no_route(
    port: int, services: FakeServices, path: str, origin: str
) -> None:
    answer = await exchange(port, request("OPTIONS", path, *PREFLIGHT, origin=origin))
    assert (answer.status, answer.body, granted(answer)) == (204, b"", (origin, "Origin"))
    assert "content-length" not in answer.headers
    assert answer.headers["access-control-allow-methods"] == METHODS
    assert answer.headers["access-control-allow-headers"] == REQUEST_HEADERS
    assert int(answer.headers["access-control-max-age"]) > 0
    assert answer.headers["x-request-id"]
    assert services.asked == []


async def test_a_preflight_is_told_what_is_allowed_whatever_it_asks_for(port: int) -> None:
    for method, headers in (("TRACE", "x-evil"), ("", ""), ("post", "Authorization, x-y, , " + "z" * 5_000)):
        asked = (f"Access-Control-Request-Method: {method}", f"Access-Control-Request-Headers: {headers}")
        answer = await exchange(port, request("OPTIONS", CHATS, *asked))
        assert (answer.status, answer.headers["access-control-allow-headers"]) == (204, REQUEST_HEADERS)


@pytest.mark.parametrize("origin", [EVIL, "null", "", f"{PAGE}/", f"{PAGE}:443", PAGE.upper(), f"{PAGE}.evil.example"])
async def test_a_page_on_another_origin_is_granted_nothing(port: int, origin: str) -> None:
    preflight = await exchange(port, request("OPTIONS", CHATS, *PREFLIGHT, origin=origin))
    assert (preflight.status, preflight.code, granted(preflight)) == (405, "method_not_allowed", (None, "Origin"))
    answer = await exchange(port, request("GET", CHATS, AUTH, origin=origin))
    assert (answer.status, granted(answer)) == (200, (None, "Origin"))
    assert EXPOSED not in answer.headers


async def test_two_origins_in_one_request_are_none(port: int) -> None:
    answer = await exchange(port, request("GET", CHATS, AUTH, f"Origin: {PAGE}"))
    assert granted(answer) == (None, "Origin")


async def test_options_without_a_method_to_ask_for_is_no_preflight(port: int) -> None:
    answer = await exchange(port, request("OPTIONS", CHATS))
    assert (answer.status, answer.code, granted(answer)) == (405, "method_not_allowed", (PAGE, "Origin"))


async def test_an_answer_varies_by_origin_without_one_too(port: int) -> None:
    assert granted(await exchange(port, request("GET", CHATS, AUTH, origin=None))) == (None, "Origin")
    assert granted(await exchange(port, request("GET", LINK, origin=None))) == (None, "Accept, Origin")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("POST", CHATS, AUTH, body="{}"), 201),
        (request("GET", CHATS.rstrip("/"), AUTH), 307),
        (request("POST", CHATS, AUTH, body="{"), 400),
        (request("GET", CHATS), 401),
        (request("GET", CHATS, "Authorization: Bearer x"), 401),
        (request("GET", "/nothing/", AUTH), 404),
        (request("DELETE", CHATS, AUTH), 405),
        (request("POST", CHATS, AUTH, "Content-Length: 2000000", "Content-Type: application/json"), 413),
        (request("GET", f"{CHATS}?{'x' * 64_000}", AUTH), 414),
        (request("POST", CHATS, AUTH, "Content-Length: 2") + b"{}", 415),
        (request("GET", f"{CHATS}?limit=0", AUTH), 422),
        (request("GET", CHATS, AUTH, f"X: {'x' * 20_000}"), 431),
        (request("GET", "/healthz", "no colon"), 400),
        (request("GET", CHATS, "Content-Length: x"), 400),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
async def test_a_page_reads_every_answer(port: int, sent: bytes, status: int) -> None:
    # Browsers send Origin early; a refusal of the head itself is readable once it was read.
    lines = sent.split(b"\r\n")
    origin = next(line for line in lines if line.startswith(b"Origin"))
    lines.remove(origin)
    answer = await exchange(port, b"\r\n".join([lines[0], origin, *lines[1:]]))
    assert (answer.status, granted(answer)) == (status, (PAGE, "Origin"))
    assert answer.headers[EXPOSED] == RESPONSE_HEADERS


@pytest.mark.parametrize(("broken", "status"), [(ZeroDivisionError, 500), (None, 503)])
async def test_a_page_reads_what_went_wrong_inside(
    services: FakeServices, monkeypatch: pytest.MonkeyPatch, broken: type[Exception] | None, status: int
) -> None:
    changes = {} if broken else {"chat_address": "127.0.0.1:1"}
    if broken:
        monkeypatch.setattr("gateway.routes.chats.session_out", lambda *_: 1 / 0)
        services.answers["ListSessions"] = chat_pb2.ListSessionsResponse(sessions=[a_session()])
    async with gateway_of(services, PAGE, **changes) as port:
        answer = await exchange(port, request("GET", CHATS, AUTH))
    assert (answer.status, granted(answer)) == (status, (PAGE, "Origin"))
    assert answer.code


async def test_a_page_reads_that_too_much_runs_here(
    services: FakeServices, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.edge.Edge._refusal", lambda *_: unavailable("Too many.", code="overloaded"))
    answer = await exchange(port, request("GET", CHATS, AUTH))
    assert (answer.status, answer.code, granted(answer)) == (503, "overloaded", (PAGE, "Origin"))
    assert "Retry-After" in answer.headers[EXPOSED]


async def test_a_page_reads_a_stream(services: FakeServices, nats_server: Nats) -> None:
    services.answers["GetTask"] = chat_pb2.GetTaskResponse(task=a_completed_task(), user_message=a_message())
    async with gateway_of(services, PAGE, nats_url=nats_server.url) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET", STATUS, AUTH, "Accept: text/event-stream", "Connection: close"))
        answer = await read_answer(reader, has_body=False)
        assert (answer.status, granted(answer)) == (200, (PAGE, "Origin"))
        assert b"event: completed" in await reader.read()
        writer.close()


async def test_any_origin_may_be_allowed(services: FakeServices) -> None:
    async with gateway_of(services, "*") as port:
        for origin in (PAGE, EVIL, "null", None):
            answer = await exchange(port, request("GET", CHATS, AUTH, origin=origin))
            assert (answer.status, granted(answer)) == (200, ("*", "Origin"))
        preflight = await exchange(port, request("OPTIONS", CHATS, *PREFLIGHT, origin="null"))
        assert (preflight.status, granted(preflight)) == (204, ("*", "Origin"))


async def test_without_origins_there_is_no_trace_of_cors(services: FakeServices) -> None:
    async with gateway_of(services, "") as port:
        for sent in (request("GET", CHATS, AUTH), request("OPTIONS", CHATS, *PREFLIGHT)):
            answer = await exchange(port, sent)
            assert not [name for name in answer.headers if name.startswith("access-control") or name == VARY]
        assert (await exchange(port, request("GET", LINK))).headers[VARY] == "Accept"


def test_a_page_may_read_every_header_that_the_document_names() -> None:
    answers = [
        *(
            one
            for path in DOCUMENT["paths"].values()
            for operation in path.values()
            for one in operation["responses"].values()
        ),
        *DOCUMENT["components"]["responses"].values(),
    ]
    assert {name for answer in answers for name in answer.get("headers", {})} <= set(RESPONSE_HEADERS.split(", "))


def test_a_page_may_send_every_header_that_the_document_names() -> None:
    taken = {
        parameter["name"]
        for path in DOCUMENT["paths"].values()
        for operation in path.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header"
    }
    assert {*taken, "Authorization", "Content-Type"} == set(REQUEST_HEADERS.split(", "))
