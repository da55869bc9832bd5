"""An HTTP/1.1 server on loopback that answers with the bytes it is given, whatever they are."""

import asyncio
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, Self

import orjson

EVENT_STREAM = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}
HTML = {"content-type": "text/html"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One response. The body goes out piece by piece, in HTTP chunks."""

    pieces: Sequence[bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: EVENT_STREAM)
    endless: bool = False
    """Send the last piece again and again, until the client hangs up."""


class RawServer:
    """Answers each request with the next of the queue, or with the last one given."""

    def __init__(self) -> None:
        self.queue: deque[Answer] = deque()
        self.bodies: list[Any] = []
        self.hung_up = asyncio.Event()
        self._last = Answer([b""])
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def answer(self, *answers: Answer) -> None:
        """Give these answers, and the last of them from then on."""
        self.queue.extend(answers)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b"null"
                self.bodies.append(body if b"multipart/form-data" in head else orjson.loads(body))
                await self._send(writer, self.queue.popleft() if self.queue else self._last)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        self._last = answer
        head = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}", "transfer-encoding: chunked"]
        head += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join(head).encode("latin1") + b"\r\n\r\n")
        for piece in answer.pieces:
            await self._chunk(writer, piece)
        while answer.endless:
            await self._chunk(writer, answer.pieces[-1])
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _chunk(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        if piece:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        try:
            await writer.drain()
            await asyncio.sleep(0)
        except ConnectionError:
            self.hung_up.set()
            raise
