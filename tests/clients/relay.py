"""A relay before the gateway that keeps what a client sends, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local.server import LOOPBACK

RECORDED = Path(__file__).parents[1] / "recorded"
# Stands for the token in a recording; tests put one in that is valid.
TOKEN = b"TOKEN"
PIECE = 65_536


@dataclass
class Relay:
    """Listens at `url`. `requests` are in the order in which they began, on whichever connection."""

    url: str
    requests: list[bytearray] = field(default_factory=list)

    def save(self, name: str, start: bytes, token: str, *, containing: bytes = b"") -> None:
        """Keep the first request whose head starts so, as tests/recorded/<name>.http, without its token."""
        found = next(one for one in self.requests if one.startswith(start) and containing in one)
        RECORDED.mkdir(exist_ok=True)
        (RECORDED / f"{name}.http").write_bytes(bytes(found).replace(token.encode(), TOKEN))


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[Relay]:
    """A relay before this URL."""
    port = urlsplit(target).port or 80
    kept, running = Relay(""), set[asyncio.Task[None]]()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())  # type: ignore[arg-type]  # a task calls this
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, port)
        request: bytearray | None = None

        async def out() -> None:
            nonlocal request
            while piece := await reader.read(PIECE):
                if request is None:
                    request = bytearray()
                    kept.requests.append(request)
                request += piece
                far_writer.write(piece)
            far_writer.close()

        async def back() -> None:
            nonlocal request
            while piece := await far_reader.read(PIECE):
                request = None  # what the client sends from now on is another request
                writer.write(piece)
            writer.close()

        with suppress(OSError):
            await asyncio.gather(out(), back())

    server = await asyncio.start_server(connected, LOOPBACK, 0)
    kept.url = f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    try:
        yield kept
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
