"""Runs as they are streamed: heard live, replayed where something was missed, told from the database at the last.

Every client has a Follower: a plain subscription to its task's events, a bounded inbox, and a Playback that notices
whatever is missing. What a client has seen when a run ends is exactly the stored answer, or it is reset and told that.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import nats.errors
import structlog
from backendai.chat.v1 import chat_pb2
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg

from gateway.metrics import STREAMS
from gateway.outcomes import Turn, ended_badly, message_out, task_out, turn_out
from gateway.playback import START, Playback, Position, Taken, answer_text, sealed
from gateway.problems import Problem, body_of, internal, of_call, unavailable
from gateway.sse import PING, farewell, frame, position_of
from gateway.turns import PASSING, RUNNING, Begin, Read, is_final, lacks_answer
from services.kit.bus import Bus, EventsPage, Subscription, events_subject
from services.kit.ids import new_id

log = structlog.get_logger()

MAX_STREAMS = 2_000
PING_SECONDS = 15.0
# The net under lost events: a task that is silent for so long is read, …
NET_SECONDS = 2.0
# … and any other one now and then: whoever may not read it any more is not told on.
CHECK_SECONDS = 10.0
# A task that has ended is told of once it is paid; while billing is away for longer than this, without its charge.
UNPAID_SECONDS = 10.0
# Events that chat's word of the end has overtaken are here after this.
STRAGGLER_SECONDS = 0.1
INBOX_EVENTS = 256
INBOX_BYTES = 64 * 1024
CHUNK_BYTES = 16 * 1024
READ_SECONDS = 2.0
READERS = 16
# Clocks of gateways and NATS may differ by this.
CLOCK_SKEW = timedelta(seconds=10)
RETRY_MILLISECONDS = (500, 2_000)


@dataclass(frozen=True, slots=True)
class Client:
    """Who follows a task: how it is read for them, what is to be done with a task they are shown, and their request."""

    read: Read
    show: Callable[[chat_pb2.Task], None]
    request_id: str


class Inbox:
    """What was heard of a task and not taken yet. When it overflows it forgets, and what is stored closes the gap."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._events: deque[tuple[datetime, chat_pb2.TaskEvent, int]] = deque()
        self._bytes = 0
        self.ended: chat_pb2.Task | None = None
        self.heard_at = 0.0

    async def hear(self, message: Msg) -> None:
        """Take what NATS brings."""
        try:
            event = chat_pb2.TaskEvent.FromString(message.data)
        except DecodeError:
            return
        self.heard_at = asyncio.get_running_loop().time()
        if event.WhichOneof("event") == "ended":
            self.ended = self.ended or event.ended
        else:
            self._keep(event, len(message.data))
        self._ring()

    def _keep(self, event: chat_pb2.TaskEvent, size: int) -> None:
        if len(self._events) >= INBOX_EVENTS or self._bytes + size > max(INBOX_BYTES, size):
            self._events.clear()
            self._bytes = 0
        self._events.append((datetime.now(UTC), event, size))
        self._bytes += size

    def first(self) -> tuple[datetime, chat_pb2.TaskEvent] | None:
        """The oldest event and when it came."""
        return self._events[0][:2] if self._events else None

    def drop_first(self) -> None:
        """It is taken."""
        self._bytes -= self._events.popleft()[2]


class Follower:
    """One client's stream of one task."""

    def __init__(self, streams: Streams, client: Client, task_id: str, seen: Position) -> None:
        self.task_id, self.opening = task_id, b""
        self._streams, self._client = streams, client
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._inbox = Inbox(self._news.set)
        self._subscription: Subscription | None = None
        self._playback = Playback(seen)
        self._user_message = chat_pb2.Message()
        self._end: chat_pb2.Task | None = None
        self._unpaid_since: float | None = None
        self._missing = False
        self._from: int | datetime = 1
        self._replay_again_at = 0.0
        self._read_at = self._wrote_at = self._loop.time()
        self._leaving = False

    # --- from opening to close ---

    async def listen(self) -> None:
        """Hear of the task from now on, if NATS is there."""
        self._subscription = await self._streams.bus.subscribe(events_subject(self.task_id), self._inbox.hear)

    def begin(self, task: chat_pb2.Task, user_message: chat_pb2.Message, *, is_new: bool) -> None:
        """What chat has told of the task, before the first chunk; of a task that is not new there may be more."""
        self._user_message = user_message
        self._client.show(task)
        self._note(task)
        self._missing = not is_new

    def leave(self) -> None:
        """End the stream soon; the run goes on."""
        self._leaving = True
        self._news.set()

    async def close(self) -> None:
        """Hear no more."""
        self._streams.forget(self)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._subscription is not None:
            with suppress(nats.errors.Error):  # the connection went, and the subscription with it
                await self._subscription.unsubscribe()

    # --- what is written ---

    async def chunks(self) -> AsyncGenerator[bytes]:
        """What to write, piece by piece, until the run's end, or until the gateway wants its clients elsewhere."""
        try:
            if self.opening:
                yield self.opening
            async for chunk in self._told():
                self._wrote_at = self._loop.time()
                yield chunk
        except Problem as problem:
            yield self._failed(problem)
        except Exception as error:
            log.error("stream_failed", task_id=self.task_id, error=type(error).__name__)
            yield self._failed(internal())

    async def _told(self) -> AsyncGenerator[bytes]:
        while not self._leaving:
            if self._end is None and self._missing:
                async for chunk in self._replay():
                    yield chunk
            if chunk := self._take_heard():
                yield chunk
                continue
            self._end = self._end or await self._heard_end()
            if self._end is not None:
                async for chunk in self._last_words(self._end):
                    yield chunk
                return
            if not self._missing and await self._wait():
                yield PING
        yield farewell(random.randint(*RETRY_MILLISECONDS))

    def _take_heard(self) -> bytes:
        """What the inbox adds, up to a chunk; it stops where something is missing that may be stored."""
        frames: list[bytes] = []
        size = 0
        while size < CHUNK_BYTES and (first := self._inbox.first()) is not None:
            came_at, event = first
            taken = self._playback.take(event)
            if taken is Taken.GAP and self._may_be_stored():
                break
            self._inbox.drop_first()
            if taken is not Taken.GAP:
                self._from, self._replay_again_at = came_at - CLOCK_SKEW, 0.0
            if taken is Taken.SHOWN:
                frames.append(_shown(event))
                size += len(frames[-1])
        return b"".join(frames)

    def _may_be_stored(self) -> bool:
        """Whether a replay may close a gap. One that was tried just now has not."""
        now = self._loop.time()
        if now < self._replay_again_at:
            self._from = 1
            return False
        self._missing, self._replay_again_at = True, now + NET_SECONDS
        return True

    async def _replay(self) -> AsyncGenerator[bytes]:
        """What is stored from where the client is, page by page, as fast as it reads."""
        self._missing = False
        start: int | datetime | None = self._from
        while start is not None:
            page = await self._streams.page(self.task_id, start)
            if page is None or not page.payloads:
                return
            frames = [_shown(event) for event in _events(page) if self._playback.take(event) is Taken.SHOWN]
            if frames:
                yield b"".join(frames)
            self._from = page.next_start
            start = None if page.is_last else page.next_start

    # --- the end ---

    async def _heard_end(self) -> chat_pb2.Task | None:
        """The end as chat has announced it, with its answer."""
        ended = self._inbox.ended
        if ended is None or not lacks_answer(ended):
            return ended
        await self._look()
        return self._end

    async def _last_words(self, task: chat_pb2.Task) -> AsyncGenerator[bytes]:
        """Whatever the client still lacks, and the terminal event."""
        playback = self._playback
        if playback.seen.attempt <= task.attempt and not playback.has_told(task) and await self._is_stored(task):
            self._from = 1
            async for chunk in self._replay():
                yield chunk
        if playback.seen.attempt > task.attempt or not playback.has_told(task):
            yield self._whole_answer(task)
        yield self._terminal(task)

    async def _is_stored(self, task: chat_pb2.Task) -> bool:
        """Whether the stored events bring the client to the stored answer. It sees none of them if they do not."""
        if await self._adds_up(task):
            return True
        if self._inbox.ended is None:
            return False
        await asyncio.sleep(STRAGGLER_SECONDS)
        return await self._adds_up(task)

    async def _adds_up(self, task: chat_pb2.Task) -> bool:
        trial, start = Playback(self._playback.seen), 1
        while (page := await self._streams.page(self.task_id, start)) is not None and page.payloads:
            for event in _events(page):
                trial.take(event)
            if page.is_last:
                break
            start = page.next_start
        return trial.has_told(task)

    def _whole_answer(self, task: chat_pb2.Task) -> bytes:
        """The stored answer in place of whatever the client has; the rest of it for one that was cut in the midst."""
        places, seen, text = sealed(task), self._playback.seen, answer_text(task)
        if seen > places.end:
            seen = START
        frames: list[bytes] = []
        if seen < places.reset:
            frames.append(frame("reset", places.reset, {}))
        if seen < places.answer and text:
            frames.append(frame("delta", places.answer, {"text": text}))
        self._playback.seen = places.answer
        return b"".join(frames)

    def _terminal(self, task: chat_pb2.Task) -> bytes:
        self._client.show(task)
        place = self._playback.end_of(task)
        if task.state == chat_pb2.TASK_STATE_COMPLETED:
            return frame("completed", place, turn_out(Turn(task, self._user_message)))
        if task.state == chat_pb2.TASK_STATE_CANCELLED:
            return frame("cancelled", place, task_out(task))
        return frame("failed", place, body_of(ended_badly(task), self._client.request_id))

    def _failed(self, problem: Problem) -> bytes:
        """What ends the stream, and not the run."""
        return frame("failed", self._playback.seen, body_of(problem, self._client.request_id))

    # --- waiting ---

    async def _wait(self) -> bool:
        """Wait for news. Whether it is time for a ping."""
        ping_at = self._wrote_at + PING_SECONDS
        if self._alarm is None:
            self._alarm = self._loop.call_at(min(ping_at, self._look_at), self._ring)
        await self._news.wait()
        self._news.clear()
        now = self._loop.time()
        if now >= self._look_at and self._inbox.ended is None:
            await self._look()
        return now >= ping_at

    @property
    def _look_at(self) -> float:
        quiet_since = max(self._inbox.heard_at, self._read_at)
        return min(quiet_since + NET_SECONDS, self._read_at + CHECK_SECONDS)

    def _ring(self) -> None:
        self._alarm = None
        self._news.set()

    async def _look(self) -> None:
        """Read the task: the net under lost events, and a check that the client may still see it."""
        self._read_at = self._loop.time()
        try:
            found = await self._client.read(self.task_id)
        except grpc.aio.AioRpcError as error:
            if error.code() in PASSING:
                return
            raise of_call(error) from error
        self._note(found.task)
        if self._subscription is None:
            await self.listen()
            self._missing = self._subscription is not None

    def _note(self, task: chat_pb2.Task) -> None:
        """Take an end as it is once it is paid, or has waited long enough for that."""
        if task.state == RUNNING:
            return
        now = self._loop.time()
        self._unpaid_since = self._unpaid_since or now
        if is_final(task) or now - self._unpaid_since > UNPAID_SECONDS:
            self._end = task


class Streams:
    """The streams of this process."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._followers: set[Follower] = set()
        self._readers = asyncio.Semaphore(READERS)
        self._stopped = False
        STREAMS.set_function(lambda: len(self._followers))

    def stop(self) -> None:
        """Send everyone away, with a hint to come back."""
        self._stopped = True
        for follower in self._followers:
            follower.leave()

    def forget(self, follower: Follower) -> None:
        """Its client is gone."""
        self._followers.discard(follower)

    async def begin(self, client: Client, begin: Begin) -> tuple[Follower, chat_pb2.Task]:
        """Begin a turn under a new task id and follow it, or its twin; the follower is to be closed."""
        task_id = str(new_id())
        follower = await self._open(client, task_id, START)
        try:
            begun = await begin(task_id)
            if begun.task.id != task_id:
                await follower.close()
                follower = await self._open(client, begun.task.id, START)
            follower.begin(begun.task, begun.user_message, is_new=begun.task.id == task_id)
        except BaseException:
            await follower.close()
            raise
        follower.opening = _saved(begun.task, begun.user_message)
        return follower, begun.task

    async def follow(self, client: Client, task_id: str, event_id: str) -> Follower:
        """Follow a task, on from an event's id where the client brings one. The follower is to be closed."""
        seen = position_of(event_id)
        follower = await self._open(client, task_id, seen or START)
        try:
            found = await client.read(task_id)
        except BaseException:
            await follower.close()
            raise
        follower.begin(found.task, found.user_message, is_new=False)
        if seen is None:  # an id of nobody's: whatever the client has, it begins anew
            follower.opening = frame("reset", START, {})
        elif not event_id:
            follower.opening = _saved(found.task, found.user_message)
        return follower

    async def _open(self, client: Client, task_id: str, seen: Position) -> Follower:
        if len(self._followers) >= MAX_STREAMS:
            raise unavailable("Too many streams are open here. Try again.", code="overloaded")
        follower = Follower(self, client, task_id, seen)
        self._followers.add(follower)
        await follower.listen()
        if self._stopped:
            follower.leave()
        return follower

    async def page(self, task_id: str, start: int | datetime) -> EventsPage | None:
        """Some stored events; few clients read at once, so that none of it costs much at any time."""
        async with self._readers:
            return await self.bus.read_events(task_id, start, timeout_seconds=READ_SECONDS)


def _events(page: EventsPage) -> list[chat_pb2.TaskEvent]:
    events = map(chat_pb2.TaskEvent.FromString, page.payloads)
    return [event for event in events if event.WhichOneof("event") != "ended"]


def _saved(task: chat_pb2.Task, message: chat_pb2.Message) -> bytes:
    return frame("message", START, {"task_id": task.id, "user_message": message_out(message) if message.id else None})


def _shown(event: chat_pb2.TaskEvent) -> bytes:
    place = Position(event.attempt, event.seq)
    match event.WhichOneof("event"):
        case "delta":
            return frame("delta", place, {"text": event.delta})
        case "tool_call":
            call = event.tool_call
            return frame("tool_call", place, {"id": call.id, "name": call.name, "arguments": call.arguments_json})
        case "tool_result":
            result = event.tool_result
            return frame("tool_result", place, {"tool_call_id": result.tool_call_id, "content": result.content})
        case _:
            return frame("reset", place, {})
