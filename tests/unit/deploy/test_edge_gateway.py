"""Traefik before the real gateway: offers to upgrade, HEAD, and CORS, whoever of the two answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from backendai.chat.v1 import chat_pb2

from deploy.local.server import LOOPBACK, free_port
from gateway.cors import METHODS, RESPONSE_HEADERS
from gateway.server import Gateway
from tests.traefik import HOST, Traefik
from tests.unit.gateway.conftest import FakeServices, fake_services, served, settings_for
from tests.unit.gateway.raw import Answer, read_answer
from tests.unit.gateway.samples import CHATS, SESSION, a_session, token

PAGE, OTHER, EVIL = "https://app.example.com", "http://localhost:3000", "https://evil.example.com"
AUTH = f"Authorization: Bearer {token()}"
PREFLIGHT = ("Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: authorization")
LINK = "/api/chats/shared/7c0f6d3e-54a1-4b53-9df7-0a3f6d1c2b4e/"
BODY = b'{"name": "Holidays"}'
OFFERS = [
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    "Connection: Upgrade\r\nUpgrade: TLS/1.2",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x",
]


class Proxy:
    """A Traefik before a gateway whose services are fakes."""

    def __init__(self, traefik: Traefik, services: FakeServices) -> None:
        self.traefik, self.services = traefik, services

    async def ask(self, method: str, path: str, *headers: str, origin: str | None = PAGE, body: bytes = b"") -> Answer:
        """One answer, over TLS and HTTP/1.1."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", *headers, "Connection: close"]
        if any(header.startswith("Connection") for header in headers):
            lines.pop()
        if origin is not None:
            lines.append(f"Origin: {origin}")
        reader, writer = await asyncio.open_connection(
            LOOPBACK, self.traefik.port, ssl=unverified(), server_hostname=HOST
        )
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode())
            await writer.drain()
            writer.write(body)  # in a packet of its own
            return await read_answer(reader, has_body=method != "HEAD")
        finally:
            writer.close()
            await writer.wait_closed()


def unverified() -> ssl.SSLContext:
    """Takes the certificate that Traefik makes itself."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@asynccontextmanager
async def proxied_gateway(folder: Path, *, origins: str = "", gateway_url: str | None = None) -> AsyncIterator[Proxy]:
    """Traefik before a gateway, with these origins for both; before nothing at another URL."""
    async with fake_services() as services:
        gateway = Gateway(settings_for(services.address, cors_allowed_origins=origins))
        async with served(gateway) as port:
            traefik = Traefik(folder, gateway_url or f"http://{LOOPBACK}:{port}", origins=origins)
            await asyncio.to_thread(traefik.start)
            try:
                yield Proxy(traefik, services)
            finally:
                traefik.kill()


def granted(answer: Answer) -> tuple[str | None, set[str]]:
    """To which origin it may be shown, and what it varies by."""
    assert answer.repeated_headers == []
    vary = answer.headers.get("vary", "")
    return answer.headers.get("access-control-allow-origin"), {name.strip() for name in vary.split(",") if name}


def exposed(answer: Answer) -> set[str]:
    """The headers that a page may read."""
    return {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}


async def test_a_request_that_offers_an_upgrade_keeps_its_body(tmp_path: Path) -> None:
    async with proxied_gateway(tmp_path) as proxy:
        proxy.services.answers["CreateSession"] = chat_pb2.CreateSessionResponse(session=a_session())
        for offer in OFFERS:
            for framing, body in (
                (f"Content-Length: {len(BODY)}", BODY),
                ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)),
            ):
                json = "Content-Type: application/json"
                answer = await proxy.ask("POST", CHATS, AUTH, json, offer, framing, body=body)
                assert answer.status == 201
        names = [asked.settings.name for asked in proxy.services.requests("CreateSession")]
    assert names == ["Holidays"] * 2 * len(OFFERS)


async def test_head_passes_wherever_get_does(tmp_path: Path) -> None:
    async with proxied_gateway(tmp_path) as proxy:
        for path in (CHATS, "/healthz", "/readyz", LINK, "/api/openapi.json"):
            get, head = await proxy.ask("GET", path, AUTH), await proxy.ask("HEAD", path, AUTH)
            assert (head.status, head.headers["content-length"]) == (get.status, get.headers["content-length"])


async def test_what_the_gateway_answers_passes_with_its_headers_once(tmp_path: Path) -> None:
    async with proxied_gateway(tmp_path, origins=f"{PAGE}, {OTHER}") as proxy:
        for origin in (PAGE, OTHER):
            preflight = await proxy.ask("OPTIONS", CHATS, *PREFLIGHT, origin=origin)
            assert (preflight.status, granted(preflight)) == (204, (origin, {"Origin"}))
            assert preflight.headers["access-control-allow-methods"] == METHODS
            assert preflight.headers["x-request-id"]  # the gateway's own
        for status, asked in (
            (200, ("GET", CHATS, AUTH)),
            (401, ("GET", CHATS)),
            (422, ("GET", f"{CHATS}?limit=0", AUTH)),
            (307, ("GET", CHATS.rstrip("/"), AUTH)),
            (405, ("POST", f"{CHATS}{SESSION}/", AUTH, "Content-Length: 0")),
        ):
            answer = await proxy.ask(*asked)
            assert (answer.status, granted(answer)) == (status, (PAGE, {"Origin"}))
            assert exposed(answer) == set(RESPONSE_HEADERS.split(", "))
        assert granted(await proxy.ask("GET", LINK)) == (PAGE, {"Accept", "Origin"})
        assert granted(await proxy.ask("GET", CHATS, AUTH, origin=EVIL)) == (None, {"Origin"})
        assert granted(await proxy.ask("GET", CHATS, AUTH, origin=None)) == (None, {"Origin"})
        assert (await proxy.ask("OPTIONS", CHATS, *PREFLIGHT, origin=EVIL)).status == 405


@pytest.mark.parametrize("origins", [f"{PAGE},{OTHER}", "*"])
async def test_a_page_reads_what_traefik_refuses_itself(tmp_path: Path, origins: str) -> None:
    allowed = "*" if origins == "*" else PAGE
    async with proxied_gateway(tmp_path, origins=origins) as proxy:
        answers = [await proxy.ask("POST", "/api/transcribe-audio/", "Content-Length: 0") for _ in range(20)]
        refused = [answer for answer in answers if answer.status == 429]
        assert refused
        for answer in refused:
            assert granted(answer) == (allowed, {"Origin"})
            assert answer.headers["retry-after"]
            assert "Retry-After" in exposed(answer)
        large = await proxy.ask("PUT", f"{CHATS}{SESSION}/", AUTH, "Content-Length: 2000000")
        assert (large.status, granted(large)) == (413, (allowed, {"Origin"}))
        assert "x-request-id" not in large.headers
        others = await proxy.ask("PUT", f"{CHATS}{SESSION}/", AUTH, "Content-Length: 2000000", origin=EVIL)
        assert granted(others)[0] == ("*" if origins == "*" else None)


async def test_a_page_reads_that_no_gateway_is_there(tmp_path: Path) -> None:
    async with proxied_gateway(tmp_path, origins=PAGE, gateway_url=f"http://{LOOPBACK}:{free_port()}") as proxy:
        answer = await proxy.ask("GET", CHATS, AUTH)
        assert answer.status in (502, 503)
        assert granted(answer) == (PAGE, {"Origin"})


async def test_without_origins_there_is_no_trace_of_cors(tmp_path: Path) -> None:
    async with proxied_gateway(tmp_path) as proxy:
        for method, path, headers in (("GET", CHATS, (AUTH,)), ("OPTIONS", CHATS, PREFLIGHT)):
            answer = await proxy.ask(method, path, *headers)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert granted(answer) == (None, set())
