"""A transaction pooler for PostgreSQL, as strict and as forgetful as PgBouncer 1.18 in its default settings.

It refuses start-up parameters that it does not know, makes up the process ids it hands out, and lends a server's
connection for a transaction only: prepared statements and settings of a session are somewhere else next time.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeAlias

import psycopg
from psycopg.rows import TupleRow

from deploy.local.server import LOOPBACK, free_port

SSL_REQUEST, CANCEL_REQUEST, GSS_REQUEST = 80_877_103, 80_877_102, 80_877_104
KNOWN_PARAMETERS = {
    "user",
    "database",
    "client_encoding",
    "datestyle",
    "timezone",
    "standard_conforming_strings",
    "application_name",
}
REPORTED = ("server_version", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings")
Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


class Pooler:
    """Lends `size` connections to a server in turn, to as many clients as come. It asks nobody for a password."""

    def __init__(self, url: str, *, size: int = 3) -> None:
        self._url, self._size, self.port = url, size, free_port()
        self.refused: list[str] = []
        """The start-up parameters for which clients were refused."""
        self._sessions: list[psycopg.Connection[TupleRow]] = []
        self._free: asyncio.Queue[tuple[Reader, Writer]] = asyncio.Queue()
        self._writers: deque[Writer] = deque()
        self._parameters: dict[str, str] = {}
        self._server: asyncio.Server | None = None

    def url_of(self, url: str) -> str:
        """The same database by way of the pooler."""
        scheme, _, rest = url.partition("://")
        user, _, place = rest.rpartition("@")
        return f"{scheme}://{user}@{LOOPBACK}:{self.port}/{place.partition('/')[2]}"

    async def __aenter__(self) -> Self:
        for _ in range(self._size):
            session = psycopg.connect(self._url, autocommit=True)  # at its start alone, so nothing else has to run
            self._sessions.append(session)
            self._parameters = {name: session.info.parameter_status(name) or "" for name in REPORTED}
            raw = socket.socket(fileno=socket.dup(session.pgconn.socket))
            reader, writer = await asyncio.open_connection(sock=raw)
            self._writers.append(writer)
            self._free.put_nowait((reader, writer))
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for session in self._sessions:
            session.close()

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        self._writers.append(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            if await self._greet(reader, writer):
                while await self._run_transaction(reader, writer):
                    pass
        writer.close()

    async def _greet(self, reader: Reader, writer: Writer) -> bool:
        while True:
            size, code = struct.unpack("!II", await reader.readexactly(8))
            words = (await reader.readexactly(size - 8)).split(b"\0")
            if code not in (SSL_REQUEST, GSS_REQUEST):
                break
            writer.write(b"N")
        if code == CANCEL_REQUEST:
            return False
        given = {name.decode().lower() for name in words[::2] if name}
        if unknown := given - KNOWN_PARAMETERS:
            self.refused += unknown
            text = f"unsupported startup parameter: {unknown.pop()}"
            writer.write(_message(b"E", b"SFATAL\0C08P01\0M" + text.encode() + b"\0\0"))
            return False
        writer.write(_message(b"R", struct.pack("!I", 0)))
        for name, value in self._parameters.items():
            writer.write(_message(b"S", f"{name}\0{value}\0".encode()))
        writer.write(_message(b"K", secrets.token_bytes(8)))
        writer.write(_message(b"Z", b"I"))
        return True

    async def _run_transaction(self, reader: Reader, writer: Writer) -> bool:
        request = await _request(reader)
        if request is None:
            return False
        there, back = await self._free.get()
        try:
            while request is not None:
                back.write(request)
                if await _pass_answer_on(there, writer) == b"I":
                    return True
                request = await _request(reader)
            return False
        finally:
            self._free.put_nowait((there, back))


async def _request(reader: Reader) -> bytes | None:
    """A client's messages up to the one that the server answers; None when it leaves."""
    messages = b""
    while True:
        kind, message = await _read(reader)
        if kind == b"X":
            return None
        messages += message
        if kind in b"QS":
            return messages


async def _pass_answer_on(reader: Reader, writer: Writer) -> bytes:
    """The server's messages up to the one that says it is ready; its transaction status."""
    while True:
        kind, message = await _read(reader)
        writer.write(message)
        if kind == b"Z":
            await writer.drain()
            return message[-1:]


async def _read(reader: Reader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    size = struct.unpack("!I", head[1:])[0]
    return head[:1], head + await reader.readexactly(size - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body
