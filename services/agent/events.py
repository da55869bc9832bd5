"""What a run tells while it runs: deltas, tool calls and results, numbered, on the task's own subject."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby

from backendai.chat.v1.chat_pb2 import Reset, TaskEvent, ToolResult
from backendai.chat.v1.chat_pb2 import ToolCall as ToolCallEvent

from services.agent.domain import Message, ToolCall
from services.kit.bus import events_subject

# Deltas that come closer together are joined.
JOIN_SECONDS = 0.005
# What is told again comes in pieces of this size at most.
PIECE_CHARACTERS = 100_000

Publish = Callable[[str, bytes], Awaitable[None]]


class Events:
    """The events of one attempt. Publishing waits for nobody, and nobody needs to listen."""

    def __init__(self, publish: Publish, task_id: str, attempt: int) -> None:
        self._publish, self._subject, self._attempt = publish, events_subject(task_id), attempt
        self._loop = asyncio.get_running_loop()
        self._buffer: list[str] = []
        self._not_before = 0.0
        self._due: asyncio.Handle | None = None
        self._flushes: set[asyncio.Task[None]] = set()
        self._telling = asyncio.Lock()  # numbers go out in their order
        self._told: list[str | TaskEvent] = []
        self.last = 0
        """The number of the last event that was published."""

    def delta(self, text: str) -> None:
        """Tell a piece of the answer, once the loop has taken in what came with it, and not too soon after the last.

        All that came in one packet is one event, and a lone token waits for nothing.
        """
        self._buffer.append(text)
        if self._due is None:
            wait_seconds = self._not_before - self._loop.time()
            later = self._loop.call_later
            self._due = later(wait_seconds, self._fire) if wait_seconds > 0 else self._loop.call_soon(self._fire)

    def _fire(self) -> None:
        self._due = None
        flush = self._loop.create_task(self.flush())
        self._flushes.add(flush)
        flush.add_done_callback(self._flushes.discard)

    async def flush(self) -> None:
        """Tell what is waiting."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._buffer:
            text = "".join(self._buffer)
            self._buffer.clear()
            self._not_before = self._loop.time() + JOIN_SECONDS
            self._told.append(text)
            await self._tell(TaskEvent(delta=text))

    async def tell_again(self) -> None:
        """Void what this attempt has told, and tell it all anew: anybody may have missed any of it."""
        await self.flush()
        if self._told:
            told = _joined(self._told)
            await self._tell(TaskEvent(reset=Reset()), *told)

    async def reset(self) -> None:
        """Tell that what earlier attempts have told is void."""
        await self._tell(TaskEvent(reset=Reset()))

    async def tool_call(self, call: ToolCall) -> None:
        """Tell that a tool is called."""
        await self.flush()
        event = ToolCallEvent(id=call.id, name=call.name, arguments_json=call.arguments)
        await self._tell_tool(TaskEvent(tool_call=event))

    async def tool_result(self, message: Message) -> None:
        """Tell what a tool has answered."""
        await self.flush()
        result = ToolResult(tool_call_id=message.tool_call_id, content=message.content)
        await self._tell_tool(TaskEvent(tool_result=result))

    async def _tell_tool(self, event: TaskEvent) -> None:
        self._told.append(event)
        await self._tell(event)

    async def _tell(self, *events: TaskEvent) -> None:
        async with self._telling:
            for event in events:
                self.last += 1
                event.attempt, event.seq = self._attempt, self.last
                await self._publish(self._subject, event.SerializeToString())


def _joined(told: Sequence[str | TaskEvent]) -> list[TaskEvent]:
    """What was told in as few events as possible."""
    events: list[TaskEvent] = []
    for is_text, group in groupby(told, key=lambda piece: isinstance(piece, str)):
        if is_text:
            text = "".join(piece for piece in group if isinstance(piece, str))
            pieces = range(0, len(text), PIECE_CHARACTERS)
            events += [TaskEvent(delta=text[start : start + PIECE_CHARACTERS]) for start in pieces]
        else:
            events += [event for event in group if isinstance(event, TaskEvent)]
    return events
