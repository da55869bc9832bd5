"""openapi-fetch with types that openapi-typescript makes of docs/openapi.json: strictly typed, without a cast."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import WORKSPACE, run
from tests.clients.relay import Relay
from tests.integration.stack import Stack

PROJECT = Path(__file__).parent / "openapi_fetch"
DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


@pytest.fixture
async def client(tmp_path: Path) -> tuple[str, ...]:
    """The compiled program's command. Nothing is written beside its source."""
    assert shutil.which("npm"), "Install Node.js 20 or newer, with npm (Debian: apt install nodejs npm)."
    for name in ("package.json", "package-lock.json", ".npmrc", "tsconfig.json", "client.ts"):
        shutil.copy(PROJECT / name, tmp_path)
    await run("npm", "ci", "--no-audit", "--no-fund", folder=tmp_path)
    programs = tmp_path / "node_modules" / ".bin"
    await run(programs / "openapi-typescript", DOCUMENT, "--output", "schema.d.ts", folder=tmp_path)
    await run(programs / "tsc", "--strict", "--project", ".", folder=tmp_path)
    return ("node", "client.js")


async def test_it_creates_sends_streams_and_uploads(
    client: tuple[str, ...], stack: Stack, recorder: Relay, recording: Path, tmp_path: Path
) -> None:
    stack.script("openai", default={"text": "Paris."})
    stack.script("whisper", default={"text": "Good morning."})
    async with stack.user("carol", workspace=WORKSPACE) as carol:
        printed = await run(*client, recorder.url, carol.token, WORKSPACE, recording, folder=tmp_path)
    assert printed.splitlines() == [
        "201 From TypeScript openai owner",
        "Renamed",
        "201 Paris. true",
        "completed",
        "event: completed",
        "1 null",
        "200 Good morning. whisper-1",
        "422 validation_error /temperature",
    ]


def test_the_lock_names_no_registry() -> None:
    assert '"resolved"' not in (PROJECT / "package-lock.json").read_text()
