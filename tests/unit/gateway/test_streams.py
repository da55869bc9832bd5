"""Streams: what a client gets whatever NATS loses, chat says late, or the client itself does not read."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from backendai.chat.v1 import chat_pb2
from grpc.aio import Metadata

from gateway.edge import Edge
from gateway.problems import Problem
from gateway.server import Gateway
from gateway.streams import INBOX_BYTES, INBOX_EVENTS, Client, Follower, Inbox, Streams
from services.kit.bus import EVENTS_STREAM, Bus, events_subject
from services.kit.errors import NotFound
from services.kit.ids import new_id
from tests.integration import waiting
from tests.integration.following import EVENTS, Reader
from tests.servers import Nats
from tests.unit.gateway.conftest import FakeServices, client_of, served, settings_for, until
from tests.unit.gateway.samples import (
    MESSAGES,
    NO_TEMPERATURE,
    NO_TEMPERATURE_OUT,
    NOON,
    STATUS,
    TASK,
    a_completed_task,
    a_failed_task,
    a_message,
    an_answer,
    token,
)
from tests.unit.gateway.samples import a_task as a_running_task

QUESTION = a_message()


@dataclass
class Run:
    """A task as chat and the agent see it, and the streams of one gateway that follow it."""

    streams: Streams
    bus: Bus
    id: str = field(default_factory=lambda: str(new_id()))
    attempt: int = 1
    seq: int = 0
    told: str = ""
    task: chat_pb2.Task = field(default_factory=chat_pb2.Task)
    reads: int = 0
    shown: list[int] = field(default_factory=list)
    refusal: Exception | None = None

    def __post_init__(self) -> None:
        self.task = a_running_task(id=self.id)

    async def read(self, task_id: str) -> chat_pb2.GetTaskResponse:
        """What chat says."""
        assert task_id == self.id
        self.reads += 1
        if self.refusal is not None:
            raise self.refusal
        return chat_pb2.GetTaskResponse(task=self.task, user_message=QUESTION)

    @property
    def client(self) -> Client:
        """Someone who may see it."""
        return Client(self.read, lambda task: self.shown.append(task.state), "request")

    # --- the agent ---

    async def publish(self, **event: Any) -> None:
        """Tell an event, and have it stored."""
        self.seq += 1
        made = chat_pb2.TaskEvent(attempt=self.attempt, seq=self.seq, **event)
        await self.bus.publish(events_subject(self.id), made.SerializeToString())

    async def say(self, *pieces: str) -> None:
        """Tell deltas."""
        for piece in pieces:
            self.told += piece
            await self.publish(delta=piece)

    async def begin_attempt(self, attempt: int) -> None:
        """Another agent goes on."""
        self.attempt, self.seq, self.told = attempt, 0, ""
        await self.publish(reset=chat_pb2.Reset())

    # --- chat ---

    def complete(self, text: str | None = None, **changes: Any) -> None:
        """The end is stored."""
        answer = an_answer(content=self.told if text is None else text)
        self.task = a_completed_task(**{"id": self.id, "attempt": self.attempt, "ai_messages": [answer], **changes})

    async def announce(self) -> None:
        """The end is told."""
        event = chat_pb2.TaskEvent(attempt=self.task.attempt, seq=self.seq + 1, ended=self.task)
        await self.bus.publish(events_subject(self.id), event.SerializeToString())

    # --- the client ---

    async def send(self) -> Follower:
        """Follow it from before it began."""

        async def begin(task_id: str) -> chat_pb2.SendMessageResponse:
            self.id = self.task.id = task_id
            return chat_pb2.SendMessageResponse(task=self.task, user_message=QUESTION)

        follower, _ = await self.streams.begin(self.client, begin)
        return follower

    async def follow(self, event_id: str = "") -> Follower:
        """Follow it from now on, or resume."""
        return await self.streams.follow(self.client, self.id, event_id)


@pytest.fixture
async def run(listening: Gateway, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Nobody waits long for a read."""
    monkeypatch.setattr("gateway.streams.NET_SECONDS", 0.2)
    await listening.bus.ensure_events()
    return Run(listening.parts.streams, listening.bus)


async def read(follower: Follower, *, enough: Callable[[Reader], object] = lambda reader: False) -> Reader:
    """Read to the end, or until it is enough."""
    reader = Reader()
    async with asyncio.timeout(10), aclosing(follower.chunks()) as chunks:
        async for chunk in chunks:
            reader.feed(chunk)
            if enough(reader):
                break
    await follower.close()
    return reader


async def stored(run: Run) -> None:
    """Wait until NATS has all that was told."""

    async def is_stored() -> bool:
        last, start = 0, 1
        while (page := await run.bus.read_events(run.id, start, timeout_seconds=1)) is not None and page.payloads:
            last = max(last, *(chat_pb2.TaskEvent.FromString(payload).seq for payload in page.payloads))
            start = page.next_start
        return last >= run.seq

    await waiting.until(is_stored)


async def purge(run: Run) -> None:
    await stored(run)
    await run.bus.js.purge_stream(EVENTS_STREAM)


def losing(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Have the events of these numbers not heard by anybody; they are stored all the same."""
    hear = Inbox.hear

    async def hear_some(self: Inbox, message: Any) -> None:
        if chat_pb2.TaskEvent.FromString(message.data).seq not in numbers:
            await hear(self, message)

    monkeypatch.setattr(Inbox, "hear", hear_some)


def places(reader: Reader) -> list[str]:
    return [f"{event.id} {event.kind}" for event in reader.events]


async def test_a_run_is_told_from_its_message_to_its_end(run: Run) -> None:
    follower = await run.send()
    await run.say("Par", "is.")
    run.complete()
    await run.announce()
    reader = await read(follower)
    assert places(reader) == ["0.0 message", "1.1 delta", "1.2 delta", "1.3 completed"]
    assert reader.text == "Paris."
    assert reader.events[0].data["user_message"]["content"] == QUESTION.content
    assert reader.events[-1].data["ai_messages"][0]["content"] == "Paris."
    assert run.reads == 0


@pytest.mark.parametrize("state", [chat_pb2.TASK_STATE_COMPLETED, chat_pb2.TASK_STATE_CANCELLED])
async def test_the_last_event_has_the_warnings_of_the_run(run: Run, state: int) -> None:
    follower = await run.send()
    await run.say("Paris.")
    run.complete(state=state, warnings=[NO_TEMPERATURE])
    await run.announce()
    assert (await read(follower)).events[-1].data["warnings"] == [NO_TEMPERATURE_OUT]


async def test_tools_are_told_as_they_are_used(run: Run) -> None:
    follower = await run.send()
    await run.publish(tool_call=chat_pb2.ToolCall(id="call", name="add", arguments_json='{"a":1}'))
    await run.publish(tool_result=chat_pb2.ToolResult(tool_call_id="call", content="3\n"))
    await run.say("3")
    run.complete()
    await run.announce()
    reader = await read(follower)
    assert reader.of("tool_call")[0].data == {"id": "call", "name": "add", "arguments": '{"a":1}'}
    assert reader.of("tool_result")[0].data == {"tool_call_id": "call", "content": "3\n"}


async def test_an_end_that_nobody_announced_is_found_by_reading(run: Run) -> None:
    follower = await run.send()
    await run.say("Paris.")
    run.complete()
    reader = await read(follower)
    assert (reader.text, reader.kinds[-1]) == ("Paris.", "completed")
    assert run.reads >= 1
    assert run.shown[-1] == chat_pb2.TASK_STATE_COMPLETED


async def test_an_end_that_is_not_paid_yet_is_waited_for(run: Run) -> None:
    follower = await run.send()
    run.complete("Paris.", held_nano=5)
    reading = asyncio.create_task(read(follower))
    await until(lambda: run.reads >= 2)
    assert not reading.done()
    run.complete("Paris.")
    assert (await reading).kinds[-1] == "completed"


async def test_an_answer_too_long_for_an_event_is_read(run: Run) -> None:
    follower = await run.send()
    await run.say("Paris.")
    run.complete()
    whole = run.task
    run.task = a_completed_task(id=run.id, ai_messages=[])
    await run.announce()
    run.task = whole
    reader = await read(follower)
    assert reader.events[-1].data["ai_messages"][0]["content"] == "Paris."


@pytest.mark.parametrize("lost", [(1,), (2, 3), (5,), (1, 2, 3, 4, 5)])
async def test_what_was_not_heard_is_replayed(run: Run, lost: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, *lost)
    follower = await run.send()
    await run.say("a", "b", "c", "d", "e")
    await stored(run)
    run.complete()
    await run.announce()
    reader = await read(follower)
    assert places(reader)[1:] == [f"1.{number} delta" for number in range(1, 6)] + ["1.6 completed"]
    assert reader.text == "abcde"


async def test_a_loss_is_made_good_while_the_run_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, 2)
    follower = await run.send()
    await run.say("a", "b", "c")
    reader = await read(follower, enough=lambda reader: reader.text == "abc")
    assert "reset" not in reader.kinds


async def test_what_is_lost_for_good_is_made_good_by_the_stored_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, 2)
    follower = await run.send()
    await run.say("a", "b")
    await purge(run)
    await run.say("c")
    run.complete()
    await run.announce()
    reader = await read(follower)
    assert places(reader) == ["0.0 message", "1.1 delta", "2.1 reset", "2.2 delta", "2.3 completed"]
    assert reader.text == "abc"


async def test_another_attempt_begins_anew_and_an_old_agent_is_not_heard_any_more(run: Run) -> None:
    follower = await run.send()
    await run.say("old")
    await run.begin_attempt(2)
    await run.say("new ")
    zombie = chat_pb2.TaskEvent(attempt=1, seq=2, delta="zombie")
    await run.bus.publish(events_subject(run.id), zombie.SerializeToString())
    await run.say("text")
    run.complete()
    await run.announce()
    reader = await read(follower)
    assert places(reader)[1:] == ["1.1 delta", "2.1 reset", "2.2 delta", "2.3 delta", "2.4 completed"]
    assert reader.text == "new text"


async def test_a_stored_text_that_is_shorter_than_what_was_told_is_told_instead(run: Run) -> None:
    follower = await run.send()
    await run.say("One ", "two ", "three")
    await stored(run)
    run.complete("One two ", state=chat_pb2.TASK_STATE_CANCELLED)
    await run.announce()
    reader = await read(follower)
    assert (reader.text, reader.kinds[-3:]) == ("One two ", ["reset", "delta", "cancelled"])
    assert reader.events[-1].data["status"] == "cancelled"


async def test_a_run_that_was_cancelled_before_its_first_word_ends_without_one(run: Run) -> None:
    follower = await run.send()
    run.complete(state=chat_pb2.TASK_STATE_CANCELLED, ai_messages=[], attempt=0)
    await run.announce()
    assert places(await read(follower)) == ["0.0 message", "0.1 cancelled"]


async def test_a_failed_run_ends_in_its_problem(run: Run) -> None:
    follower = await run.send()
    await run.say("Par")
    run.task = a_failed_task(id=run.id, attempt=1)
    await run.announce()
    reader = await read(follower)
    assert places(reader) == ["0.0 message", "1.1 delta", "1.2 failed"]
    problem = reader.events[-1].data
    assert (problem["status"], problem["code"], problem["task_id"]) == (502, run.task.error_code, run.id)
    assert problem["request_id"] == "request"


async def test_every_place_of_an_ended_run_can_be_resumed_from(run: Run) -> None:
    await run.say("a", "b", "c", "d")
    await stored(run)
    run.complete()
    for number, rest in ((0, "abcd"), (1, "bcd"), (3, "d"), (4, ""), (5, "")):
        reader = await read(await run.follow(f"1.{number}" if number else "0.0"))
        assert (reader.text, reader.kinds[-1]) == (rest, "completed")
        assert "reset" not in reader.kinds
        assert "message" not in reader.kinds
        assert reader.last_id == "1.5"


async def test_a_running_one_too_and_it_goes_on(run: Run) -> None:
    await run.say("a", "b", "c")
    await stored(run)
    follower = await run.follow("1.2")
    await run.say("d")
    run.complete()
    await run.announce()
    assert places(await read(follower)) == ["1.3 delta", "1.4 delta", "1.5 completed"]


async def test_who_comes_late_is_told_all_of_it(run: Run) -> None:
    await run.say("a", "b")
    await stored(run)
    reader = await read(await run.follow(), enough=lambda reader: reader.text == "ab")
    assert places(reader) == ["0.0 message", "1.1 delta", "1.2 delta"]


async def test_a_long_run_is_replayed_page_by_page(run: Run) -> None:
    await run.say(*(f"{number} " for number in range(1_000)))
    await stored(run)
    run.complete()
    reader = await read(await run.follow())
    assert reader.text == run.told
    assert len(reader.of("delta")) == 1_000


@pytest.mark.parametrize("event_id", ["1.2", "1.99", "7.1", "3.9"])
async def test_with_the_events_gone_the_stored_answer_is_told(run: Run, event_id: str) -> None:
    await run.say("a", "b", "c")
    await purge(run)
    run.complete()
    reader = await read(await run.follow(event_id))
    assert places(reader) == ["2.1 reset", "2.2 delta", "2.3 completed"]
    assert reader.text == "abc"


@pytest.mark.parametrize(
    ("event_id", "told"),
    [("2.1", ["2.2 delta", "2.3 completed"]), ("2.2", ["2.3 completed"]), ("2.3", ["2.3 completed"])],
)
async def test_who_is_cut_in_the_midst_of_that_goes_on_there(run: Run, event_id: str, told: list[str]) -> None:
    await run.say("abc")
    await stored(run)  # another gateway may have found nothing
    run.complete()
    assert places(await read(await run.follow(event_id))) == told


@pytest.mark.parametrize("event_id", ["nonsense", "1", "1.x", "-1.2", "1.2.3", "9" * 40 + ".1"])
async def test_an_id_of_nobodys_begins_anew(run: Run, event_id: str) -> None:
    await run.say("a", "b")
    await stored(run)
    run.complete()
    reader = await read(await run.follow(event_id))
    assert (reader.kinds[0], reader.text, reader.kinds[-1]) == ("reset", "ab", "completed")


async def test_an_answer_that_was_deleted_since_is_told_to_nobody(run: Run) -> None:
    await run.say("sec", "ret")
    await stored(run)
    run.complete(ai_messages=[])
    assert (await read(await run.follow())).kinds == ["message", "completed"]
    assert (await read(await run.follow("1.1"))).kinds == ["reset", "completed"]


async def test_a_client_that_does_not_read_costs_a_bounded_inbox_and_loses_nothing(run: Run) -> None:
    follower = await run.send()
    inbox = follower._inbox
    async with asyncio.timeout(20), aclosing(follower.chunks()) as chunks:
        reader = Reader()
        reader.feed(await anext(chunks))
        for burst in range(20):
            await run.say(*("x" * 400 + f" {burst}.{number} " for number in range(100)))
            await run.bus.client.flush()
            assert len(inbox._events) <= INBOX_EVENTS
            assert inbox._bytes <= INBOX_BYTES
        await stored(run)
        run.complete()
        await run.announce()
        async for chunk in chunks:
            reader.feed(chunk)
    await follower.close()
    assert reader.text == run.told
    assert "reset" not in reader.kinds


async def test_silence_is_filled_with_pings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.streams.PING_SECONDS", 0.1)
    reader = await read(await run.send(), enough=lambda reader: len(reader.comments) == 3)
    assert reader.comments == ["ping"] * 3
    assert reader.kinds == ["message"]


async def test_a_gateway_that_stops_says_when_to_come_again(run: Run) -> None:
    follower = await run.send()
    await run.say("a")
    reading = asyncio.create_task(read(follower))
    await asyncio.sleep(0)
    run.streams.stop()
    reader = await reading
    assert reader.end is None
    assert reader.retry_milliseconds is not None
    assert 500 <= reader.retry_milliseconds <= 2_000
    assert len(reader.comments) == 1
    late = await read(await run.follow())
    assert late.kinds == ["message"]
    assert late.retry_milliseconds is not None


def refused(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, Metadata(), Metadata())


async def test_who_may_not_see_the_task_any_more_is_told_no_more(run: Run) -> None:
    follower = await run.send()
    run.refusal = Problem(404, "not_found", "Not found.")
    reader = await read(follower)
    assert (reader.kinds, reader.events[-1].data["code"]) == (["message", "failed"], "not_found")


async def test_that_is_seen_in_the_midst_of_deltas_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.streams.CHECK_SECONDS", 0.2)
    follower = await run.send()
    run.refusal = Problem(404, "not_found", "Not found.")
    reading = asyncio.create_task(read(follower))
    while not reading.done():
        await run.say("x")
        await asyncio.sleep(0.01)
    assert reading.result().kinds[-1] == "failed"


async def test_chat_may_be_away_for_a_while(run: Run) -> None:
    follower = await run.send()
    run.refusal = refused(grpc.StatusCode.UNAVAILABLE)
    reading = asyncio.create_task(read(follower))
    await until(lambda: run.reads >= 2)
    run.refusal = None
    run.complete("Paris.")
    assert (await reading).text == "Paris."


async def test_a_defect_of_ours_is_an_event_without_its_words(run: Run) -> None:
    follower = await run.send()
    run.refusal = RuntimeError("secret words")
    reader = await read(follower)
    assert reader.events[-1].data["code"] == "internal_error"
    assert "secret" not in str(reader.events)


async def test_a_turn_that_is_refused_leaves_nobody_listening(run: Run) -> None:
    async def begin(task_id: str) -> chat_pb2.SendMessageResponse:
        raise refused(grpc.StatusCode.NOT_FOUND)

    before = len(run.bus.client._subs)
    with pytest.raises(grpc.aio.AioRpcError):
        await run.streams.begin(run.client, begin)
    run.refusal = refused(grpc.StatusCode.NOT_FOUND)
    with pytest.raises(grpc.aio.AioRpcError):
        await run.follow()
    assert len(run.bus.client._subs) == before
    assert not run.streams._followers


async def test_a_stream_that_ended_leaves_nobody_listening(run: Run) -> None:
    before = len(run.bus.client._subs)
    follower = await run.send()
    run.complete("Paris.")
    await run.announce()
    await read(follower)
    assert len(run.bus.client._subs) == before
    assert not run.streams._followers


async def test_a_twin_follows_the_turn_that_was_begun_before(run: Run) -> None:
    await run.say("a", "b")
    await stored(run)

    async def begin(task_id: str) -> chat_pb2.SendMessageResponse:
        return chat_pb2.SendMessageResponse(task=run.task, user_message=QUESTION)

    follower, task = await run.streams.begin(run.client, begin)
    assert task.id == run.id
    await run.say("c")
    run.complete()
    await run.announce()
    reader = await read(follower)
    assert (reader.kinds[0], reader.text) == ("message", "abc")


async def test_too_many_streams_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.streams.MAX_STREAMS", 1)
    first = await run.send()
    with pytest.raises(Problem, match="overloaded"):
        await run.follow()
    await first.close()
    await (await run.follow()).close()


async def test_without_nats_the_answer_comes_whole_at_the_end(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.streams.NET_SECONDS", 0.1)
    run = Run(gateway.parts.streams, gateway.bus)
    follower = await run.send()
    reading = asyncio.create_task(read(follower))
    await until(lambda: run.reads >= 2)
    run.complete("Paris.")
    reader = await reading
    assert (reader.kinds, reader.text) == (["message", "reset", "delta", "completed"], "Paris.")


async def test_without_a_stream_of_events_what_is_heard_is_told(run: Run) -> None:
    await run.bus.js.delete_stream(EVENTS_STREAM)
    follower = await run.send()
    await run.say("a", "b")
    run.complete()
    await run.announce()
    reader = await read(follower)
    assert places(reader) == ["0.0 message", "1.1 delta", "1.2 delta", "1.3 completed"]
    assert (await read(await run.follow("1.1"))).text == "ab"


# --- over HTTP ---


async def test_a_send_that_accepts_events_gets_them(listening: Gateway, services: FakeServices) -> None:
    await listening.bus.ensure_events()
    answered = a_completed_task(created_at=NOON)

    def accept(request: chat_pb2.SendMessageRequest) -> chat_pb2.SendMessageResponse:
        answered.id = request.task_id
        return chat_pb2.SendMessageResponse(task=answered, user_message=QUESTION)

    services.answers["SendMessage"] = accept
    async with client_of(listening) as client:
        response = await client.post(MESSAGES, json={"content": "Hello?"}, headers=EVENTS)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["Location"] == f"{MESSAGES}agent-task-status/{answered.id}/"
    reader = Reader()
    reader.feed(response.content)
    assert reader.kinds == ["message", "reset", "delta", "completed"]


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_before_the_first_byte_a_refusal_is_a_problem(
    method: str, client: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["SendMessage"] = services.answers["GetTask"] = NotFound()
    path, body = (MESSAGES, {"content": "Hello?"}) if method == "POST" else (STATUS, None)
    response = await client.request(method, path, json=body, headers=EVENTS)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert response.headers["Content-Type"] == "application/problem+json"


@asynccontextmanager
async def a_stream(services: FakeServices) -> AsyncIterator[Gateway]:
    """A gateway, one client of which follows a task that goes on and on."""
    services.answers["GetTask"] = chat_pb2.GetTaskResponse(task=a_running_task(id=TASK), user_message=QUESTION)
    gateway = Gateway(settings_for(services.address))
    headers = {"Authorization": f"Bearer {token()}", **EVENTS}
    async with served(gateway) as port:
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers)
        async with client, client.stream("GET", STATUS) as response:
            assert b"event: message" in await anext(response.aiter_raw())
            yield gateway
        await until(lambda: not gateway.parts.streams._followers)


async def test_a_client_that_hangs_up_is_forgotten(services: FakeServices) -> None:
    async with a_stream(services) as gateway:
        assert len(gateway.parts.streams._followers) == 1


async def test_a_stream_takes_no_place_of_a_request(services: FakeServices) -> None:
    async with a_stream(services) as gateway:
        edge: Any = gateway.app.middleware_stack
        while not isinstance(edge, Edge):
            edge = edge.app
        assert not edge._running


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system knows no such limit")
async def test_a_client_that_takes_nothing_is_hung_up_on(
    services: FakeServices, nats_server: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.server.STALLED_SECONDS", 1)
    services.answers["GetTask"] = chat_pb2.GetTaskResponse(task=a_running_task(id=TASK), user_message=QUESTION)
    gateway = Gateway(settings_for(services.address, nats_url=nats_server.url))
    async with served(gateway) as port:
        await until(lambda: gateway.bus.connected)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
        head = (
            f"GET {STATUS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\nAccept: text/event-stream\r\n\r\n"
        )
        writer.write(head.encode())
        await reader.readuntil(b"event: message")
        run = Run(gateway.parts.streams, gateway.bus, id=TASK)
        await run.say(*("x" * 100_000 for _ in range(150)))
        await until(lambda: not gateway.parts.streams._followers, seconds=15)
        writer.close()
