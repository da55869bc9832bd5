"""Chromium with a page on another origin: it sends, streams with fetch, uploads, and reads headers and failures."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from deploy.local.server import LOOPBACK, free_port
from tests.clients.conftest import RECORD, RUN_SECONDS, WORKSPACE
from tests.clients.relay import relay
from tests.integration.stack import Stack
from tests.servers import Postgres
from tests.traefik import HOST, Traefik

PAGE = Path(__file__).parent / "browser" / "page.html"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Traefik's name and the certificate that it makes itself.
    f"--host-resolver-rules=MAP {HOST} {LOOPBACK}",
    "--ignore-certificate-errors",
)
TURN = (
    "create",
    "change",
    "changed_meanwhile",
    "replace",
    "send",
    "stream",
    "send_async",
    "follow",
    "resume",
    "upload",
)
FAILURES = ("bad_token", "not_found", "no_method", "too_large", "invalid")
Results = dict[str, dict[str, Any]]


@dataclass
class Pages:
    """The server of the page: an origin of its own."""

    url: str
    settings: dict[str, Any] = field(default_factory=dict)
    results: asyncio.Queue[Results] = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def serving(port: int, recording: Path) -> AsyncIterator[Pages]:
    pages = Pages(f"http://{LOOPBACK}:{port}")

    async def take(request: web.Request) -> web.Response:
        await pages.results.put(await request.json())
        return web.Response()

    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE)

    async def settings(_: web.Request) -> web.Response:
        return web.json_response(pages.settings)

    async def audio(_: web.Request) -> web.FileResponse:
        return web.FileResponse(recording)

    app = web.Application()
    app.add_routes(
        [web.get("/", page), web.get("/settings.json", settings), web.get("/audio", audio), web.post("/results", take)]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port).start()
    try:
        yield pages
    finally:
        await runner.cleanup()


@pytest.fixture(scope="session")
def page_port() -> int:
    """Where the page is; the gateway allows its origin from its start."""
    return free_port()


@pytest.fixture(scope="session")
def stack(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory, page_port: int) -> Any:
    """A system whose gateway allows the page's origin."""
    url = postgres.create_database("browser", template=migrated_template)
    origins = {"CORS_ALLOWED_ORIGINS": f"https://app.example.com, http://{LOOPBACK}:{page_port}"}
    folder = tmp_path_factory.mktemp("browser")
    with Stack(folder, url, of_each=1, mutual_tls=False, env=origins) as running:
        running.script("openai", default={"text": "Paris, of course."})
        running.script("whisper", default={"text": "Good morning."})
        yield running


@pytest.fixture
async def pages(page_port: int, recording: Path) -> AsyncIterator[Pages]:
    async with serving(page_port, recording) as running:
        yield running


async def visit(pages: Pages, folder: Path, *, api: str, token: str, steps: Iterable[str]) -> Results:
    """What the page met, step by step."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "Install Chromium (Debian: apt install chromium)."
    pages.settings = {"api": api, "token": token, "workspace": WORKSPACE, "steps": list(steps), "audio": "/audio"}
    log = (folder / "chromium.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *(chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0", pages.url),
        stdout=log,
        stderr=log,
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            return await pages.results.get()
    finally:
        process.terminate()
        await process.wait()
        log.close()


def require_turn(results: Results) -> None:
    """Everything that works has worked, and its headers could be read."""
    met = {step: (result.get("status"), result.get("error")) for step, result in results.items()}
    assert {step: met[step] for step in TURN} == {
        "create": (201, None),
        "change": (200, None),
        "changed_meanwhile": (412, None),
        "replace": (200, None),
        "send": (201, None),
        "stream": (200, None),
        "send_async": (202, None),
        "follow": (200, None),
        "resume": (200, None),
        "upload": (200, None),
    }
    assert {"Location", "ETag", "X-Request-Id"} <= results["create"]["headers"].keys()
    assert results["changed_meanwhile"]["document"]["code"] == "version_mismatch"
    assert results["send"]["document"]["ai_messages"][0]["content"] == "Paris, of course."
    assert results["stream"]["kinds"][0] == "message"
    assert results["stream"]["kinds"][-1] == "completed"
    assert results["send_async"]["headers"]["Preference-Applied"] == "respond-async"
    assert results["follow"]["kinds"][-1] == results["resume"]["kinds"][-1] == "completed"
    assert "1.1" not in results["resume"]["ids"]
    assert results["upload"]["document"]["text"] == "Good morning."
    assert results["upload"]["headers"]["X-Speech-Model"] == "whisper-1"


def require_problems(results: Results) -> None:
    """Each failure is a problem that the page could read."""
    assert {step: (results[step].get("status"), results[step]["document"]["code"]) for step in FAILURES} == {
        "bad_token": (401, "invalid_token"),
        "not_found": (404, "not_found"),
        "no_method": (405, "method_not_allowed"),
        "too_large": (413, "payload_too_large"),
        "invalid": (422, "validation_error"),
    }
    assert "WWW-Authenticate" in results["bad_token"]["headers"]


async def test_a_page_uses_the_gateway_itself(stack: Stack, pages: Pages, tmp_path: Path) -> None:
    steps = (*TURN, "head", "without_slash", *FAILURES, "remove")
    async with relay(stack.gateway_urls[0]) as recorder, stack.user(workspace=WORKSPACE) as alice:
        results = await visit(pages, tmp_path, api=recorder.url, token=alice.token, steps=steps)
        require_turn(results)
        require_problems(results)
        assert (results["head"]["status"], results["head"]["headers"]["ETag"]) == (200, '"3"')
        assert results["without_slash"]["status"] == 200
        assert results["remove"]["status"] == 204
        if RECORD:
            recorder.save("chromium-preflight", b"OPTIONS ", alice.token, containing=b"idempotency-key")
            recorder.save("chromium-create", b"POST ", alice.token, containing=b"From a page")
            recorder.save("chromium-send", b"POST ", alice.token, containing=b"of France?")
            recorder.save("chromium-stream", b"POST ", alice.token, containing=b"of Spain?")
            recorder.save("chromium-upload", b"POST ", alice.token, containing=b"audio_file")


async def test_a_page_uses_the_gateway_through_traefik(stack: Stack, pages: Pages, tmp_path: Path) -> None:
    traefik = Traefik(tmp_path / "traefik", stack.gateway_urls[0], origins=pages.url)
    await asyncio.to_thread(traefik.start)
    steps = (*TURN, *(step for step in FAILURES if step != "not_found"), "too_large_for_traefik", "too_many")
    try:
        async with stack.user("bob", workspace=WORKSPACE) as bob:
            api = f"https://{HOST}:{traefik.port}"
            results = await visit(pages, tmp_path, api=api, token=bob.token, steps=steps)
    finally:
        traefik.kill()
    require_turn(results)
    require_problems({"not_found": {"status": 404, "document": {"code": "not_found"}}, **results})
    large, many = results["too_large_for_traefik"], results["too_many"]
    assert (large["status"], large["document"]) == (413, "Request Entity Too Large")
    assert many["status"] == 429
    assert int(many["headers"]["Retry-After"]) >= 0


async def test_a_page_that_no_setting_names_reads_nothing(stack: Stack, recording: Path, tmp_path: Path) -> None:
    async with serving(free_port(), recording) as others, stack.user(workspace=WORKSPACE) as alice:
        results = await visit(
            others, tmp_path, api=stack.gateway_urls[0], token=alice.token, steps=("bad_token", "invalid")
        )
    assert [result.get("error") for result in results.values()] == ["TypeError: Failed to fetch"] * 2
