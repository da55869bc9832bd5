"""HTTP/1.1 from the network: bounded heads, no client that never finishes one, and refusals as problem+json."""

from __future__ import annotations

import asyncio
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.cors import Cors
from gateway.edge import MAX_URL_BYTES
from gateway.problems import MEDIA_TYPE, Problem, body_of, uri_too_long
from services.kit.ids import new_id

# Far above what the edge allows: only a client that would never end its head gets here.
MAX_HEAD_BYTES = 128 * 1024
HEAD_SECONDS = 30.0
# What a refused client may have under way: most read their answer only when they have sent everything.
MAX_UNWANTED_BYTES = 64 * 1024 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with what a server that faces the network needs."""

    _head_bytes = _unwanted_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, cors: Cors, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cors = cors

    def connection_made(self, transport: Any) -> None:
        """A new connection has so long to send its first head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
        self._head_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A further head on a kept connection."""
        self._head_bytes = self._unwanted_bytes = 0
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is here in time."""
        if self._offers_upgrade():
            return  # `_feed` parses this head again
        self._head_arrived()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is here."""
        if not self._offers_upgrade():
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; count what has come while the head is not complete."""
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except HttpParserError as error:
            self.send_400_response(str(error))
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(Problem(431, "headers_too_large", "The request's headers are too large."))

    def on_body(self, body: bytes) -> None:
        """A body that goes on after its answer is thrown away, in vain but for so long: its client may not stop."""
        if self.cycle.response_complete:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > MAX_UNWANTED_BYTES:
                self.transport.close()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """What can't be parsed is a problem too."""
        too_long = len(getattr(self, "url", b"")) > MAX_URL_BYTES
        self._refuse(uri_too_long() if too_long else Problem(400, "bad_request", "The request is not valid HTTP."))

    def _feed(self, data: bytes) -> None:
        """Feed the parser. Ignore offers to upgrade the connection, as RFC 9110 (section 7.8) allows.

        llhttp ends a request with such an offer at its head and parses its body as the next request. So parse the head
        a second time without the offer, and then the rest of the data.
        """
        rest: bytes | memoryview = data
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except HttpParserUpgrade as upgrade:
                if not self._offers_upgrade():  # CONNECT, which no path has: what follows it is not HTTP
                    self.cycle.keep_alive = False
                    return
                (head_ends_at,) = upgrade.args
                rest = memoryview(rest)[head_ends_at:]
                self._parse_head_without_upgrade()

    def _offers_upgrade(self) -> bool:
        """Whether the head that was parsed is an ordinary request's with an offer, so that it is parsed again."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _parse_head_without_upgrade(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = HttpRequestParser(self)
        # As uvicorn sets it for the parser that a connection begins with.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        if not self._may_answer() or self.transport.is_closing():
            self.transport.close()
            return
        request_id = str(new_id())
        body = body_of(problem, request_id)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        # Only the headers parsed so far are known. A page can read the refusal if Origin was among them.
        sent = [b"%s: %s\r\n" % header for header in self._cors.added(headers, request=self.headers or ())]
        self.transport.write(b"".join([STATUS_LINE[problem.status], *sent, b"\r\n", body]))
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether a refusal can't be read as a part of another answer, or as the answer to another request."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:  # type: ignore[redundant-expr]  # None at first
            return True
        if cycle.response_started or not cycle.more_body:
            return False
        cycle.disconnected = True  # its body is what is wrong: whatever it would answer is not sent any more
        return True
