"""Server-sent events on the wire: who asks for them, how each is written, and the answer that carries them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from gateway.accept import prefers
from gateway.playback import START, Position

MEDIA_TYPE = "text/event-stream"
PING = b": ping\n\n"
# For the OpenAPI document, which has no word for events.
STREAMED: dict[str, Any] = {
    "description": "With `Accept: text/event-stream`: events `message`, `delta`, `tool_call`, `tool_result`, `reset`, "
    "and one of `completed`, `failed` and `cancelled`, with ids to resume from.",
    "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
}
EVENT_ID = re.compile(r"([0-9]{1,9})\.([0-9]{1,15})")


def wants_events(request: Request) -> bool:
    """True if Accept lists the media type with at least JSON's quality. HEAD gets the headers of the JSON answer."""
    return request.method != "HEAD" and prefers(request, MEDIA_TYPE)


def last_event_id(request: Request) -> str:
    """As it was sent; "" when it was not."""
    return request.headers.get("last-event-id", "").strip()


def position_of(event_id: str) -> Position | None:
    """Where an event's id says a client is; None for what no stream of ours has sent."""
    if not event_id:
        return START
    found = EVENT_ID.fullmatch(event_id)
    return Position(int(found[1]), int(found[2])) if found else None


def frame(kind: str, position: Position, document: Any) -> bytes:
    """One event. JSON has no line breaks of its own, so its data is one line."""
    data = document if isinstance(document, bytes) else orjson.dumps(document)
    return b"id: %d.%d\nevent: %s\ndata: %s\n\n" % (*position, kind.encode(), data)


def farewell(milliseconds: int) -> bytes:
    """Asks the client to come again so soon, here or elsewhere."""
    return b"retry: %d\n: this gateway is going away, resume with Last-Event-ID\n\n" % milliseconds


class Source(Protocol):
    """Where a stream's bytes come from."""

    def chunks(self) -> AsyncGenerator[bytes]:
        """What to write, piece by piece."""

    def leave(self) -> None:
        """Come to an end soon."""

    async def close(self) -> None:
        """Nobody reads any more."""


class EventStream(Response):
    """200 and then whatever the source brings. A client that goes away ends this answer and nothing else."""

    media_type = MEDIA_TYPE

    def __init__(self, source: Source, headers: Mapping[str, str] | None = None) -> None:
        # Not Response's own: it would declare a length.
        self._source = source
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the source ends or the client is gone; a client that reads slowly is waited for."""
        scope["release_slot"]()
        watching = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._source.chunks()) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watching.cancel()
            await self._source.close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._source.leave()
