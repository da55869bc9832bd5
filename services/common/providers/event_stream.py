"""Reading a provider's answer: server-sent events, or one JSON document where a stream was asked for.

The event stream is decoded by the HTML standard, section 9.2.6. Beyond it, what gateways and proxies add is skipped,
and what arrived whole is kept: several JSON objects in one event, half a surrogate pair, a last event without its
blank line. Everything is bounded.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import suppress
from typing import Any

import orjson

from services.common.providers.errors import ProviderBadResponse, ProviderUnavailable

MAX_EVENT_BYTES = 8 * 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_HEAD_BYTES = 4_096
_BOM = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"
_DONE = b"[DONE]"


class EventStreamDecoder:
    """Turns bytes, cut anywhere, into the data of events. Raises ProviderBadResponse for an event over 8 MiB."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # the pieces of a line whose end has not come
        self._data: list[bytes] = []  # the data lines of an event whose end has not come
        self._line_size = 0
        self._data_size = 0  # with a byte for each line's end
        self._is_first_line = True
        self._skip_newline = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of each event that these bytes complete."""
        for line in self._lines(piece):
            if line:
                self._take(line)
            elif len(self._data) == 1:  # nearly every event
                data = self._data.pop()
                self._data_size = 0
                yield data
            elif self._data:
                yield self._event()
        self._check_size()

    def end(self) -> Iterator[bytes]:
        """The data of an event that the stream's end left without its blank line."""
        if self._line:
            line = b"".join(self._line)
            self._take(line.removeprefix(_BOM) if self._is_first_line else line)
            self._line = []
        if self._data:
            yield self._event()

    def _lines(self, piece: bytes) -> list[bytes]:
        if self._skip_newline and piece:
            piece = piece.removeprefix(b"\n")
            self._skip_newline = False
        if b"\r" in piece:
            # A CR ends the line at once; an LF that follows in the next piece belongs to it.
            self._skip_newline = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in piece:
            if piece:
                self._line.append(piece)
                self._line_size += len(piece)
            return []
        *lines, rest = piece.split(b"\n")
        if self._line:
            lines[0] = b"".join([*self._line, lines[0]])
        self._line, self._line_size = [rest] if rest else [], len(rest)
        if self._is_first_line:
            lines[0] = lines[0].removeprefix(_BOM)
            self._is_first_line = False
        return lines

    def _check_size(self) -> None:
        if self._line_size + self._data_size > MAX_EVENT_BYTES:
            raise ProviderBadResponse("The provider sent an event that is too large.")

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            data = line[6:] if line.startswith(b"data: ") else line[5:]
            self._data.append(data)
            self._data_size += len(data) + 1

    def _event(self) -> bytes:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data, self._data_size = [], 0
        return data


class Answer:
    """The JSON objects of an answer, in order. `is_whole`: it came to its end, by [DONE] or as one document."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = aiter(pieces)
        self._received = 0
        self.is_whole = False

    async def objects(self) -> AsyncIterator[Mapping[str, Any]]:
        """Each object as it comes. Raises ProviderBadResponse for malformed JSON and beyond the limits."""
        head = await self._head()
        start = _start_of(head)[:1]
        if start in (b"{", b"["):
            for document in await self._document(head):
                yield document
            return
        if start == b"<":
            raise ProviderUnavailable("The provider's answer is a web page.")
        # Not in a generator of its own: each one costs a tenth of what a token costs.
        decoder = EventStreamDecoder()
        piece: bytes | None = head
        while piece is not None:
            for data in decoder.feed(piece):
                for document in self._take(data):
                    yield document
                if self.is_whole:
                    return
            piece = await self._next()
        for data in decoder.end():
            with suppress(ProviderBadResponse):  # it was cut off, which the missing end tells
                for document in self._take(data):
                    yield document

    async def drain(self) -> None:
        """Read on to the end of the body, so that the connection can be used again."""
        while await self._next() is not None:
            pass

    async def _head(self) -> bytes:
        """The body up to its first byte beside blanks and a byte order mark, which may be cut."""
        head = b""
        while (piece := await self._next()) is not None:
            head += piece
            start = _start_of(head)
            if (start and not _BOM.startswith(start)) or len(head) > MAX_HEAD_BYTES:
                break
        return head

    async def _next(self) -> bytes | None:
        piece = await anext(self._pieces, None)
        if piece is not None:
            self._received += len(piece)
            if self._received > MAX_ANSWER_BYTES:
                raise ProviderBadResponse("The provider's answer is too large.")
        return piece

    async def _document(self, head: bytes) -> list[Mapping[str, Any]]:
        body = [head]
        while (piece := await self._next()) is not None:
            body.append(piece)
            if self._received > MAX_EVENT_BYTES:
                raise ProviderBadResponse("The provider's answer is too large.")
        documents = _parse(_start_of(b"".join(body)))
        if documents is None:
            raise ProviderBadResponse
        self.is_whole = True
        return documents

    def _take(self, data: bytes) -> list[Mapping[str, Any]]:
        """The objects in an event's data, up to [DONE]."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return self._take_oddity(data.strip(_BLANKS))
        return [value] if type(value) is dict else _mappings(value)

    def _take_oddity(self, text: bytes) -> list[Mapping[str, Any]]:
        """The objects in what is not one JSON value. What is no JSON object is skipped; a broken one is not."""
        self.is_whole = text == _DONE or text.endswith(b"\n" + _DONE)
        if self.is_whole:
            text = text.removesuffix(_DONE)
        documents = _parse(text)
        if documents is None and text.startswith(b"{"):
            raise ProviderBadResponse
        return documents or []


def _start_of(body: bytes) -> bytes:
    """The body without leading blanks and byte order mark."""
    return body.lstrip(_BLANKS).removeprefix(_BOM).lstrip(_BLANKS)


def _parse(data: bytes) -> list[Mapping[str, Any]] | None:
    """The JSON objects in a text of one JSON value, or of one a line. None if a line is malformed."""
    try:
        return _mappings(orjson.loads(data))
    except orjson.JSONDecodeError:
        pass
    try:
        return _mappings(_tolerant(data))
    except (ValueError, RecursionError):
        lines = data.split(b"\n") if b"\n" in data else []
    try:
        return [found for line in lines if line.strip() for found in _mappings(_tolerant(line))] or None
    except (ValueError, RecursionError):
        return None


def _tolerant(data: bytes) -> object:
    """JSON that orjson refuses: half a surrogate pair, a control character in a string, bytes that are no UTF-8, NaN.

    NaN and Infinity become null, since they can't be written as JSON again.
    """
    return json.loads(data.decode("utf-8", "replace"), strict=False, parse_constant=lambda _: None)


def _mappings(value: object) -> list[Mapping[str, Any]]:
    if isinstance(value, dict):
        return [value]
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
