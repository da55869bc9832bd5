"""The system that the clients speak to, and where what they send is kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.audio import tone
from tests.clients.relay import Relay, relay
from tests.integration.stack import Stack
from tests.servers import Postgres

# True writes what the clients send to tests/recorded, which `make test` replays.
RECORD = os.environ.get("RECORD") == "1"
# The workspace of the recordings, which the unit tests of the gateway know.
WORKSPACE = "0197a1b2-0000-7000-8000-000000000001"
RUN_SECONDS = 60.0


@pytest.fixture(scope="session")
def stack(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One process of each service, with fakes for providers."""
    url = postgres.create_database("clients", template=migrated_template)
    with Stack(tmp_path_factory.mktemp("clients"), url, of_each=1, mutual_tls=False) as running:
        yield running


@pytest.fixture
async def recorder(stack: Stack) -> AsyncIterator[Relay]:
    """A relay before the gateway."""
    async with relay(stack.gateway_urls[0]) as running:
        yield running


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A second of sound."""
    file = tmp_path / "recording.mp3"
    file.write_bytes(tone("mp3"))
    return file


async def run(*argv: str | Path, folder: Path) -> str:
    """What a program prints; an AssertionError with its words if it fails."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, (out + err).decode()
    return out.decode()
