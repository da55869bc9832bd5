"""A turn as the gateway sees it: listen, begin, wait as long as the caller wants to. The run knows of no waiter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import grpc
import nats.errors
from backendai.chat.v1 import chat_pb2
from nats.aio.msg import Msg

from gateway.outcomes import Turn
from services.kit.bus import Bus, events_subject
from services.kit.ids import new_id

Read = Callable[[str], Awaitable[chat_pb2.GetTaskResponse]]

NET_SECONDS = 2.0
RUNNING = chat_pb2.TASK_STATE_PROCESSING
# An error of a read that says nothing about the task: the next read may succeed.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Begun(Protocol):
    """What SendMessage and its kin answer."""

    @property
    def task(self) -> chat_pb2.Task:
        """The turn's task, or its twin's."""

    @property
    def user_message(self) -> chat_pb2.Message:
        """The message it answers."""


Begin = Callable[[str], Awaitable[Begun]]


class Listener:
    """Hears of one task's end."""

    def __init__(self) -> None:
        self._end: asyncio.Future[chat_pb2.Task | None] = asyncio.get_running_loop().create_future()

    async def hear(self, message: Msg) -> None:
        """Take an event of the task; only the last one matters here."""
        event = chat_pb2.TaskEvent.FromString(message.data)
        if event.WhichOneof("event") == "ended" and not self._end.done():
            self._end.set_result(event.ended)

    def give_up(self) -> None:
        """Wait no longer."""
        if not self._end.done():
            self._end.set_result(None)

    async def wait(self, seconds: float) -> chat_pb2.Task | None:
        """The ended task; None when it has not been heard of in that time, or nobody listens any more."""
        await asyncio.wait((self._end,), timeout=seconds)
        return self._end.result() if self._end.done() else None


class Turns:
    """Begins turns and waits for them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: set[Listener] = set()
        self._stopped = False

    def stop(self) -> None:
        """Let everyone who waits go with what there is: the runs go on."""
        self._stopped = True
        for listener in self._waiting:
            listener.give_up()

    async def run(
        self,
        begin: Begin,
        read: Read,
        *,
        wait_seconds: float,
    ) -> Turn:
        """Begin a turn under a new task id and wait for its end, for that long at most.

        A twin (a turn begun earlier under the same idempotency key) comes in its present state, and so does
        every turn while NATS is down: nobody would tell when it ends.
        """
        task_id = str(new_id())
        async with self._listening(task_id, wanted=wait_seconds > 0) as listener:
            begun = await begin(task_id)
            task = begun.task
            if task.id == task_id and listener is not None:
                task = await self._ended(task, listener, read, wait_seconds)
            return Turn(task, begun.user_message)

    @asynccontextmanager
    async def _listening(self, task_id: str, *, wanted: bool) -> AsyncIterator[Listener | None]:
        """A listener from before the turn is stored, so that its end can't be missed; None when NATS is down."""
        listener = Listener()
        wanted = wanted and not self._stopped
        subscription = await self._bus.subscribe(events_subject(task_id), listener.hear) if wanted else None
        if subscription is None:
            yield None
            return
        self._waiting.add(listener)
        try:
            yield listener
        finally:
            self._waiting.discard(listener)
            with suppress(nats.errors.Error):  # the connection went, and the subscription with it
                await subscription.unsubscribe()

    async def _ended(self, task: chat_pb2.Task, listener: Listener, read: Read, seconds: float) -> chat_pb2.Task:
        """The task once it has ended and is paid, or as it was last seen."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + seconds
        while (left := give_up_at - loop.time()) > 0:
            heard = await listener.wait(min(left, NET_SECONDS))
            if heard is not None:
                return await self._read(task, read) if lacks_answer(heard) else heard
            if self._stopped:
                return task
            task = await self._read(task, read)
            if is_final(task):
                return task
        return task

    async def _read(self, task: chat_pb2.Task, read: Read) -> chat_pb2.Task:
        """The net under lost events."""
        try:
            return (await read(task.id)).task
        except grpc.aio.AioRpcError as error:
            if error.code() not in PASSING:
                raise
            return task


def is_final(task: chat_pb2.Task) -> bool:
    """Ended, and what it cost is known."""
    return task.state != RUNNING and task.held_nano == 0


def lacks_answer(task: chat_pb2.Task) -> bool:
    """An answer too long for one event is left out of it."""
    return task.state == chat_pb2.TASK_STATE_COMPLETED and not task.ai_messages
