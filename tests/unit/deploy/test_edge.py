"""The plain install's files under the real Traefik: what a schema and a comparison can't show."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from deploy.local.server import LOOPBACK, free_port
from tests.traefik import HOST, SNI, TO_HOST, Traefik

EVENTS, GAP_SECONDS = 8, 0.2
MIB = 1024 * 1024


@dataclass(frozen=True)
class Edge:
    """A client of a Traefik before a gateway that tells what it got."""

    traefik: Traefik
    client: httpx.AsyncClient

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """An answer, whatever it is."""
        return await self.client.request(method, path, extensions=SNI, **options)

    async def is_refused(self, method: str, path: str, body: bytes) -> bool:
        """Whether a body is too large. Who still writes then may find the connection closed before the answer."""
        try:
            return (await self.send(method, path, content=body)).status_code == 413
        except (httpx.ReadError, httpx.WriteError):
            return True

    async def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """What the gateway got."""
        answer = await self.send(method, path, **options)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told


async def gateway(request: web.Request) -> web.StreamResponse:
    """Tells how it was asked, or streams events that carry the time at which they were sent."""
    if request.headers.get("accept") != "text/event-stream":
        size = sum([len(piece) async for piece in request.content.iter_chunked(MIB)])
        return web.json_response(
            {"headers": {name.lower(): value for name, value in request.headers.items()}, "size": size}
        )
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    for _ in range(EVENTS):
        await answer.write(f"data: {json.dumps(time.time())}\n\n".encode())
        await asyncio.sleep(GAP_SECONDS)
    return answer


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    app, port = web.Application(), free_port()
    app.router.add_route("*", "/{path:.*}", gateway)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port).start()
    traefik = Traefik(tmp_path, f"http://{LOOPBACK}:{port}")
    await asyncio.to_thread(traefik.start)
    try:
        async with httpx.AsyncClient(base_url=traefik.url, headers=TO_HOST, verify=False, timeout=30) as client:
            yield Edge(traefik, client)
    finally:
        traefik.kill()  # asked to stop, it takes two seconds
        await runner.cleanup()


async def test_what_a_client_says_about_itself_and_our_traces_does_not_pass(edge: Edge) -> None:
    forged = ("X-Forwarded-For", "X-Real-Ip", "Forwarded", "Traceparent", "Tracestate", "Baggage")
    told = await edge.ask("GET", "/api/models/", headers=dict.fromkeys(forged, "forged"))
    assert "forged" not in told["headers"].values()
    assert told["headers"]["x-real-ip"] == LOOPBACK


async def test_a_clients_request_id_passes(edge: Edge) -> None:
    told = await edge.ask("GET", "/api/models/", headers={"X-Request-Id": "mine"})
    assert told["headers"]["x-request-id"] == "mine"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_events_pass_at_once_for_longer_than_a_request_may_take_to_arrive(edge: Edge, method: str) -> None:
    headers = {"Accept": "text/event-stream"}
    async with edge.client.stream(method, "/api/workspaces/w/", headers=headers, extensions=SNI) as answer:
        late = [
            time.time() - float(line.removeprefix("data: "))
            async for line in answer.aiter_lines()
            if line.startswith("data: ")
        ]
    assert len(late) == EVENTS
    assert max(late) < GAP_SECONDS / 2


async def test_an_upload_of_audio_passes_and_a_larger_one_does_not(edge: Edge) -> None:
    told = await edge.ask("POST", "/api/transcribe-audio/", content=bytes(25 * MIB + 1024))
    assert told["size"] == 25 * MIB + 1024
    assert await edge.is_refused("POST", "/api/transcribe-audio/", bytes(26 * MIB + 1))


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_a_body_that_the_gateway_would_refuse_by_far_does_not_reach_it(edge: Edge, method: str) -> None:
    told = await edge.ask(method, "/api/workspaces/w/", content=bytes(MIB + 1))
    assert told["size"] == MIB + 1
    assert await edge.is_refused(method, "/api/workspaces/w/", bytes(2 * MIB))


async def test_what_is_not_documented_is_not_there(edge: Edge) -> None:
    for method, path in (
        ("GET", "/metrics"),
        ("GET", "/"),
        ("DELETE", "/api/models/"),
        ("GET", "/api/workspaces/../x"),
    ):
        assert (await edge.send(method, path)).status_code == 404


async def test_a_slash_in_disguise_is_refused(edge: Edge) -> None:
    assert (await edge.send("GET", "/api/workspaces/x%2f..%2f..%2fmetrics")).status_code == 400


async def test_a_client_that_asks_too_often_is_told_to_wait(edge: Edge) -> None:
    answers = await asyncio.gather(*(edge.send("GET", "/api/models/") for _ in range(250)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all("retry-after" in answer.headers for answer in refused)


async def test_plain_http_leads_to_https(edge: Edge) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://{LOOPBACK}:{edge.traefik.http_port}/api/models/", headers=TO_HOST)
    assert (answer.status_code, answer.headers["location"]) == (301, f"https://{HOST}/api/models/")


async def test_clients_are_told_to_stay_with_https(edge: Edge) -> None:
    assert "max-age=31536000" in (await edge.send("GET", "/api/models/")).headers["strict-transport-security"]


async def test_the_access_log_has_no_path_and_no_text(edge: Edge) -> None:
    await edge.ask("GET", "/api/workspaces/w/translate/?text=canary-in-the-query")
    await edge.ask("POST", "/api/workspaces/canary-in-the-path/", content=b"canary-in-the-body")
    await asyncio.to_thread(edge.traefik.stop)
    logged = edge.traefik.log.read_text()
    assert "workspaces-post@file" in logged
    assert "canary" not in logged
