"""A client of streams that obeys the rules: it drops half events, forgets on reset, remembers the last id."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.integration.stack import User

TERMINAL = ("completed", "failed", "cancelled")
EVENTS = {"Accept": "text/event-stream"}


@dataclass(frozen=True, slots=True)
class Event:
    """One event and when it came."""

    id: str
    kind: str
    data: Any
    came_at: float

    @property
    def place(self) -> tuple[int, int]:
        """Its attempt and number."""
        attempt, _, number = self.id.partition(".")
        return int(attempt), int(number)


@dataclass
class Reader:
    """What a client makes of the bytes, over as many connections as it takes."""

    events: list[Event] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    retry_milliseconds: int | None = None
    text: str = ""
    bytes_read: int = 0
    _rest: bytes = b""

    def connected_again(self) -> Self:
        """What was cut off in the middle of an event is lost."""
        self._rest = b""
        return self

    def feed(self, data: bytes) -> None:
        """Take bytes as they come."""
        self.bytes_read += len(data)
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            self._take(block.decode())

    def _take(self, block: str) -> None:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name:
                assert name not in fields, block
                fields[name] = value.removeprefix(" ")
            else:
                self.comments.append(value.removeprefix(" "))
        if "retry" in fields:
            self.retry_milliseconds = int(fields["retry"])
        if "data" in fields:
            self._take_event(Event(fields["id"], fields["event"], json.loads(fields["data"]), time.monotonic()))

    def _take_event(self, event: Event) -> None:
        if event.kind == "reset":
            self.text = ""
        if event.kind == "delta":
            self.text += event.data["text"]
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        """The events' kinds, in order."""
        return [event.kind for event in self.events]

    @property
    def last_id(self) -> str:
        """Where to resume."""
        return self.events[-1].id if self.events else ""

    @property
    def end(self) -> Event | None:
        """The terminal event."""
        return next((event for event in self.events if event.kind in TERMINAL), None)

    def of(self, kind: str) -> list[Event]:
        """The events of a kind."""
        return [event for event in self.events if event.kind == kind]


@asynccontextmanager
async def sending(user: User, session: str, content: str = "Hello?", **headers: str) -> AsyncIterator[httpx.Response]:
    """Send a message and get the stream of its answer."""
    sent = {**EVENTS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    body = {"role": "user", "content": content}
    async with user.stream("POST", user.messages(session), json=body, headers=sent) as response:
        yield response


@asynccontextmanager
async def following(user: User, path: str, last_id: str = "") -> AsyncIterator[httpx.Response]:
    """Follow a task, or resume to."""
    sent = {**EVENTS, "Last-Event-ID": last_id} if last_id else EVENTS
    async with user.stream("GET", path, headers=sent) as response:
        yield response


async def read(response: httpx.Response, reader: Reader | None = None, *, most_bytes: int | None = None) -> Reader:
    """Read to the stream's end, or so many bytes and then no more."""
    reader = reader or Reader()
    assert response.status_code == 200, (await response.aread()).decode()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    async for data in response.aiter_raw():
        if most_bytes is not None and len(data) >= most_bytes:
            reader.feed(data[:most_bytes])
            break
        most_bytes = most_bytes - len(data) if most_bytes is not None else None
        reader.feed(data)
    return reader


async def ask(user: User, session: str, content: str = "Hello?", **headers: str) -> Reader:
    """Send a message and read the whole stream."""
    async with sending(user, session, content, **headers) as response:
        return await read(response)


async def follow(user: User, path: str, reader: Reader | None = None) -> Reader:
    """Follow a task to its end, on from where a reader is."""
    async with following(user, path, reader.last_id if reader else "") as response:
        return await read(response, reader.connected_again() if reader else None)
