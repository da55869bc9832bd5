"""Events: in order, joined when they come at once, told again when somebody may have missed them."""

import asyncio

from backendai.chat.v1.chat_pb2 import TaskEvent

from services.agent.domain import Message, ToolCall
from services.agent.events import PIECE_CHARACTERS, Events
from services.kit.bus import events_subject


class Ear:
    """Hears every event of one attempt; `open` cleared, publishing has to wait."""

    def __init__(self, attempt: int = 1) -> None:
        self.heard: list[TaskEvent] = []
        self.open = asyncio.Event()
        self.open.set()
        self.events = Events(self._publish, "task", attempt)

    async def _publish(self, subject: str, payload: bytes) -> None:
        assert subject == events_subject("task")
        await self.open.wait()
        self.heard.append(TaskEvent.FromString(payload))

    @property
    def text(self) -> str:
        """What a client has that obeys resets."""
        text = ""
        for event in self.heard:
            text = "" if event.WhichOneof("event") == "reset" else text + event.delta
        return text

    @property
    def kinds(self) -> list[str | None]:
        return [event.WhichOneof("event") for event in self.heard]


async def test_what_comes_at_once_is_one_event() -> None:
    ear = Ear()
    for piece in ("a", "b", "c"):
        ear.events.delta(piece)
    await ear.events.flush()
    assert [event.delta for event in ear.heard] == ["abc"]


async def test_events_are_numbered_from_one_under_their_attempt() -> None:
    ear = Ear(attempt=3)
    await ear.events.reset()
    ear.events.delta("a")
    await ear.events.tool_call(ToolCall("call", "add", "{}"))
    assert [(event.attempt, event.seq) for event in ear.heard] == [(3, 1), (3, 2), (3, 3)]
    assert ear.events.last == 3


async def test_what_was_told_is_told_again_after_a_reset() -> None:
    ear = Ear()
    ear.events.delta("Let me ")
    await ear.events.flush()
    ear.events.delta("see.")
    await ear.events.tool_call(ToolCall("call", "add", '{"a":1}'))
    await ear.events.tool_result(Message("tool", "3", tool_call_id="call"))
    ear.events.delta("It is ")
    ear.heard.clear()
    await ear.events.tell_again()
    assert ear.kinds == ["delta", "reset", "delta", "tool_call", "tool_result", "delta"]
    ear.events.delta("3.")
    await ear.events.flush()
    assert ear.text == "Let me see.It is 3."
    assert [event.seq for event in ear.heard] == list(range(5, 12))


async def test_nothing_told_is_nothing_to_tell_again() -> None:
    ear = Ear()
    await ear.events.tell_again()
    assert ear.heard == []


async def test_a_long_text_is_told_again_in_pieces_that_fit_a_message() -> None:
    ear = Ear()
    ear.events.delta("x" * (PIECE_CHARACTERS + 1))
    await ear.events.flush()
    await ear.events.tell_again()
    assert [len(event.delta) for event in ear.heard] == [PIECE_CHARACTERS + 1, 0, PIECE_CHARACTERS, 1]


async def test_a_text_that_grows_while_it_is_told_again_stays_in_order() -> None:
    ear = Ear()
    ear.events.delta("a")
    await ear.events.flush()
    ear.open.clear()
    again = asyncio.create_task(ear.events.tell_again())
    await asyncio.sleep(0)
    ear.events.delta("b")
    flushed = asyncio.create_task(ear.events.flush())
    await asyncio.sleep(0)
    ear.open.set()
    await asyncio.gather(again, flushed)
    assert ear.text == "ab"
    assert [event.seq for event in ear.heard] == [1, 2, 3, 4]
