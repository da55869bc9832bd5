"""Uploads: multipart forms with one file, on their way to disk. Memory holds a piece of the file, never all of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from gateway.problems import Problem, invalid, unavailable
from services.kit.spool import Spool

log = structlog.get_logger()

MULTIPART = b"multipart/form-data"
MAX_FILE_BYTES = 25 * 1024 * 1024
MAX_FIELD_BYTES = 1024
# A name of 5,000 characters, which nobody reads, is a header too.
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 16
# What a form may have beside its file: fields, headers, boundaries.
MAX_REST_BYTES = 256 * 1024
MAX_BODY_BYTES = MAX_FILE_BYTES + MAX_REST_BYTES
# How long a client may be silent, and how long it may take altogether: 25 MiB at 0.7 Mbit/s.
IDLE_SECONDS = 30.0
RECEIVE_SECONDS = 300.0
MAX_UPLOADS = 100
MAX_POINTER_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Upload:
    """A form that is all here. The file is gone when the block it was received in is left."""

    file: Spool
    fields: Mapping[str, str]
    digest: bytes
    """Equal for equal files and fields."""


class Uploads:
    """Receives so many forms at a time."""

    def __init__(self, limit: int = MAX_UPLOADS) -> None:
        self._limit, self._running = limit, 0

    @asynccontextmanager
    async def receive(self, request: Request, *, file: str, fields: Collection[str]) -> AsyncIterator[Upload]:
        """A form with this file and any of these fields, for the length of the block; parts come in any order.

        400 no multipart that can be read, 408 too slow, 413 too large, 415 another type, 422 other parts than these,
        503 too many at a time or no room on the disk.
        """
        with self._place(), Spool() as spool:
            form = _Form(file, fields)
            parser = _parser(request, form)
            try:
                async with asyncio.timeout(RECEIVE_SECONDS):
                    async for piece in _pieces(request):
                        _parse(parser, piece)
                        for part in form.take():
                            await spool.write(part)
                    await spool.flush()
            except TimeoutError as error:
                raise Problem(408, "request_timeout", "The body did not arrive in time.") from error
            except OSError as error:
                log.error("spool_failed", errno=error.errno)
                raise unavailable("There is no room for the upload now. Try again.") from error
            yield Upload(spool, form.finish(), form.digest())

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._running >= self._limit:
            raise unavailable("Too many uploads are running here. Try again.", code="overloaded")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


def _parser(request: Request, form: _Form) -> MultipartParser:
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type != MULTIPART or request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_media_type", "Send the body as multipart/form-data, without an encoding.")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed()
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_part_end": form.on_part_end,
                "on_end": form.on_end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
    except FormParserError as error:
        raise _malformed() from error


def _parse(parser: MultipartParser, piece: bytes) -> None:
    try:
        parser.write(piece)
    except FormParserError as error:
        raise _malformed() from error


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes in, as far as a form may go."""
    size, more = 0, True
    while more:
        async with asyncio.timeout(IDLE_SECONDS):
            message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        yield piece


class _Form:
    """What a parser finds: pieces of the file to take away, and the fields."""

    def __init__(self, file: str, fields: Collection[str]) -> None:
        self._file, self._known = file, {file, *fields}
        self._seen: dict[str, bytearray] = {}
        self._digest = hashlib.sha256()
        self._size = 0
        self._pieces: list[bytes] = []
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._whole = False

    def take(self) -> list[bytes]:
        """The pieces of the file that have come since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> dict[str, str]:
        """The fields; the form must have ended, with its file."""
        if not self._whole:
            raise _malformed()
        if self._file not in self._seen:
            raise invalid(f"/{self._file}", "A file is required.")
        return {name: _text(name, value) for name, value in self._seen.items() if name != self._file}

    def digest(self) -> bytes:
        """Equal for equal files and fields, in whatever order they came."""
        fields = {name: bytes(value) for name, value in self._seen.items() if value}
        return hashlib.sha256(self._digest.digest() + repr(sorted(fields.items())).encode()).digest()

    def on_part_begin(self) -> None:
        self._headers.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        """Whose part begins: what it calls its file, and its type, are not looked at."""
        disposition, options = parse_options_header(self._headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise _malformed()
        name = options[b"name"].decode("utf-8", "replace")
        if name not in self._known:
            raise invalid(_pointer(name), "This part is not expected.")
        if name in self._seen:
            raise invalid(_pointer(name), "This part came twice.")
        self._name, self._seen[name] = name, bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._name == self._file:
            self._size += len(piece)
            if self._size > MAX_FILE_BYTES:
                raise _too_large()
            self._digest.update(piece)
            self._pieces.append(piece)
            return
        field = self._seen[self._name]
        field += piece
        if len(field) > MAX_FIELD_BYTES:
            raise invalid(_pointer(self._name), f"At most {MAX_FIELD_BYTES} bytes.")

    def on_part_end(self) -> None:
        self._name = ""

    def on_end(self) -> None:
        self._whole = True


def _text(name: str, value: bytearray) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise invalid(_pointer(name), "Not valid UTF-8.") from error
    if "\0" in text:
        raise invalid(_pointer(name), "Must not contain the character U+0000.")
    return text


def _pointer(name: str) -> str:
    return "/" + name[:MAX_POINTER_CHARACTERS].replace("~", "~0").replace("/", "~1")


def _malformed() -> Problem:
    return Problem(400, "malformed_multipart", "The body is not a whole multipart/form-data with its boundary.")


def _too_large() -> Problem:
    return Problem(413, "payload_too_large", "The file is larger than 25 MiB.")
