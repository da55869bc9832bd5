"""The worker against real NATS, real gRPC and the real SDK."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from backendai.chat.v1 import chat_pb2
from backendai.chat.v1.chat_pb2 import TaskEvent, TaskStatus
from google.protobuf.struct_pb2 import Struct
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from deploy.local.server import free_port
from services.agent import wakeups
from services.agent.domain import PARAMETER_DROPPED, Completed, TaskWarning
from services.agent.frameworks.none import Plain
from services.agent.providers.openai import OpenAICompatible
from services.agent.runs import Run
from services.agent.tools import Tool, Tools
from services.agent.wakeups import SILENCE_SECONDS
from services.common.providers.errors import ProviderError, ProviderRejected
from services.kit.bus import (
    CANCEL_SUBJECT,
    JOBS_CONSUMER,
    JOBS_STREAM,
    JOBS_SUBJECT,
    STATUS_BUCKET,
    Bus,
    events_subject,
)
from tests.fakes.chat import FakeChat
from tests.fakes.openai import FakeOpenAI
from tests.fakes.provider import Behaviour
from tests.servers import Nats, new_nats
from tests.unit.agent.conftest import FRAMEWORKS, KEY, connected, working

PARIS = "The capital of France is Paris."
NO_TEMPERATURE = chat_pb2.TaskWarning(code="parameter_dropped", detail="temperature")
ENDLESS = Behaviour(tokens=10_000, token_delay_ms=10)


async def wake(bus: Bus, times: int = 1) -> None:
    for _ in range(times):
        await bus.publish(JOBS_SUBJECT, b"a task")


async def eventually(check: Callable[[], Awaitable[object]]) -> None:
    """Wait until the check holds; it fails after 15 s."""
    async with asyncio.timeout(15):
        while not await check():  # noqa: ASYNC110 (what is asked is another process)
            await asyncio.sleep(0.02)


async def ready(bus: Bus) -> None:
    """Wait until a worker's pull request waits at the server."""

    async def a_request_waits() -> bool:
        try:
            return bool((await bus.js.consumer_info(JOBS_STREAM, JOBS_CONSUMER)).num_waiting)
        except NotFoundError:
            return False

    await eventually(a_request_waits)


async def queue_holds(bus: Bus, wakeups: int) -> None:
    """Wait until so many wake-ups are in the queue."""

    async def as_many() -> bool:
        return (await bus.js.stream_info(JOBS_STREAM)).state.messages == wakeups

    await eventually(as_many)


async def queue_is_empty(bus: Bus) -> None:
    """Wait until every wake-up has been acknowledged."""
    await queue_holds(bus, 0)


async def has_status_bucket(bus: Bus) -> bool:
    """Whether statuses are kept."""
    try:
        await bus.js.key_value(STATUS_BUCKET)
    except NotFoundError:
        return False
    return True


async def reconnected(bus: Bus) -> None:
    """Wait until NATS is there again."""

    async def is_connected() -> bool:
        return bus.connected

    await eventually(is_connected)


@asynccontextmanager
async def listening(bus: Bus, subject: str) -> AsyncIterator[list[Msg]]:
    """What is published on a subject, up to the end of the block."""
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    subscription = await bus.client.subscribe(subject, cb=hear)
    await bus.client.flush()
    yield heard
    await bus.client.flush()
    await subscription.drain()  # type: ignore[no-untyped-call]


# --- a run from wake-up to end ---


@pytest.mark.parametrize("framework", ["none", "langgraph"])
async def test_a_task_is_claimed_run_and_completed(
    framework: str, chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    task = chat.add(framework=framework)
    async with listening(bus, events_subject(task.task_id)) as heard, working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.completed)
        await queue_is_empty(bus)
    [completed] = chat.completed
    assert completed.task_id == task.task_id
    assert completed.attempt == 1
    assert completed.content == PARIS
    assert completed.finish_reason == "stop"
    assert (completed.usage.input_tokens, completed.usage.output_tokens) == (12, 6)
    assert not completed.usage.estimated
    assert not completed.cancelled
    assert not completed.warnings
    events = [TaskEvent.FromString(message.data) for message in heard]
    assert "".join(event.delta for event in events) == PARIS
    assert [event.seq for event in events] == list(range(1, completed.last_event + 1))


class Warns(Plain):
    """A framework whose runs have a warning, and after that an error or an answer."""

    def __init__(self, error: ProviderError | None = None) -> None:
        self._error = error

    async def answer(self, run: Run) -> Completed:
        run.warn(TaskWarning(PARAMETER_DROPPED, "temperature"))
        if self._error is not None:
            raise self._error
        return await super().answer(run)


async def test_the_warnings_of_a_run_are_reported_with_its_answer(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FRAMEWORKS, "none", Warns())
    chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.completed)
    assert list(chat.completed[0].warnings) == [NO_TEMPERATURE]


async def test_the_warnings_of_a_failed_run_are_reported(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FRAMEWORKS, "none", Warns(ProviderRejected()))
    chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.failed)
    assert chat.failed[0].error_code == "provider_rejected"
    assert list(chat.failed[0].warnings) == [NO_TEMPERATURE]


async def test_the_warnings_of_a_cancelled_run_are_reported(
    chat: FakeChat,
    bus: Bus,
    nats_server: Nats,
    openai: OpenAICompatible,
    openai_fake: FakeOpenAI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FRAMEWORKS, "none", Warns())
    openai_fake.default = ENDLESS
    task = chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests)
        chat.cancelled.add(task.task_id)
        await chat.until(lambda: chat.completed)
    assert chat.completed[0].cancelled
    assert list(chat.completed[0].warnings) == [NO_TEMPERATURE]


async def test_the_settings_of_the_session_reach_the_provider(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    parameters = Struct()
    parameters.update({"seed": 7, "stop": ["END"], "logit_bias": {"50256": -100}, "nested": {"on": True, "off": None}})
    settings = {"system_prompt": "Be terse.", "temperature": 0.0, "top_p": 0.5, "max_tokens": 77}
    chat.add(settings=settings | {"model_parameters": parameters})
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.completed)
    body = openai_fake.requests[0].json
    assert body["messages"][0] == {"role": "system", "content": "Be terse."}
    assert (body["temperature"], body["top_p"], body["max_completion_tokens"]) == (0, 0.5, 77)
    assert "frequency_penalty" not in body
    assert body["seed"] == 7
    assert isinstance(body["seed"], int)
    assert body["stop"] == ["END"]
    assert body["logit_bias"] == {"50256": -100}
    assert body["nested"] == {"on": True, "off": None}


async def test_the_status_entry_tells_state_and_times(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    task = chat.add()
    async with listening(bus, f"$KV.backendai_tasks.{task.task_id}") as heard, working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.completed)
    entries = [TaskStatus.FromString(message.data) for message in heard]
    assert entries[0].state == chat_pb2.TASK_STATE_PROCESSING
    assert entries[-1].state == chat_pb2.TASK_STATE_COMPLETED
    assert entries[0].attempt == 1
    assert entries[0].created_at == task.created_at
    assert entries[0].user_message_id == task.user_message_id
    assert entries[0].held_nano == task.held_nano
    assert all(PARIS.encode() not in message.data for message in heard)


async def test_a_failed_run_is_reported_with_its_code(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(error="server_error")
    chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.failed)
    assert chat.failed[0].error_code == "provider_unavailable"
    assert chat.failed[0].error_detail == "openai answered 500 (server_error)."
    assert chat.completed == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"provider": "groq"}, "provider_auth_failed"),
        ({"framework": "pydantic_ai"}, "framework_not_available"),
        ({"deadline_seconds": -1}, "provider_timeout"),
    ],
)
async def test_a_task_that_can_not_run_here_fails_at_once(
    fields: dict[str, object], code: str, chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    chat.add(**fields)
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.failed)
    assert chat.failed[0].error_code == code


async def test_a_task_that_can_not_be_read_fails_and_the_others_of_its_claim_run(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    unreadable = chat.add(history=[chat_pb2.Message(role="assistant", tool_calls_json="{")])
    readable = chat.add()
    await wake(bus, 2)
    await queue_holds(bus, 2)
    async with working(chat, nats_server.url, openai):
        await chat.until(lambda: chat.completed and chat.failed)
    assert chat.failed[0].task_id == unreadable.task_id
    assert chat.failed[0].error_code == "internal_error"
    assert chat.completed[0].task_id == readable.task_id


async def test_the_deadline_ends_a_run(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = ENDLESS
    chat.add(deadline_seconds=0.5)
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.failed)
        await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    assert chat.failed[0].error_code == "provider_timeout"


async def test_one_claim_takes_all_that_woke_it(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    await wake(bus, 4)
    for _ in range(4):
        chat.add()
    await queue_holds(bus, 4)
    async with working(chat, nats_server.url, openai, slots=4):
        await chat.until(lambda: len(chat.completed) == 4)
        await queue_is_empty(bus)
    assert len(chat.claims) < 4
    assert sum(chat.claims) == 4


async def test_never_more_tasks_run_than_there_are_slots(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(first_token_delay_ms=20)
    for _ in range(12):
        chat.add()
    most = 0

    def done() -> bool:
        nonlocal most
        open_requests = sum(not request.finished for request in openai_fake.requests)
        most = max(most, open_requests)
        return len(openai_fake.requests) == 12 and open_requests == 0

    async with working(chat, nats_server.url, openai, slots=3):
        await wake(bus, 12)
        await openai_fake.until(done)
        await chat.until(lambda: len(chat.completed) == 12)
    assert most == 3


async def test_a_wake_up_without_work_is_forgotten_and_frees_its_slot(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    async with working(chat, nats_server.url, openai, slots=1):
        await wake(bus, 3)
        await chat.until(lambda: len(chat.claims) == 3)
        await queue_is_empty(bus)
        chat.add()
        await wake(bus)
        await chat.until(lambda: chat.completed)


async def test_steps_are_recorded_and_a_later_attempt_starts_with_a_reset(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    async def add(_: str) -> str:
        return "3"

    tools = Tools(Tool("add", "Adds.", {"type": "object"}, add))
    openai_fake.queue.append(Behaviour("", tool_calls=(("add", '{"a":1}'),)))
    first = chat.add(attempt=1)
    async with working(chat, nats_server.url, openai, tools=tools):
        await wake(bus)
        await chat.until(lambda: chat.completed)
        [step] = chat.steps
        assert step.step.number == 1
        assert [message.role for message in step.step.messages] == ["assistant", "tool"]
        assert chat.completed[0].usage.input_tokens == 24
        again = chat.add(task_id=first.task_id, steps=[step.step])
        async with listening(bus, events_subject(again.task_id)) as heard:
            await wake(bus)
            await chat.until(lambda: len(chat.completed) == 2)
            await queue_is_empty(bus)
    assert chat.completed[1].attempt == 2
    assert chat.completed[1].usage.input_tokens == 24
    events = [TaskEvent.FromString(message.data) for message in heard]
    told = [event.WhichOneof("event") for event in events if event.attempt == 2]
    assert told == ["reset", "tool_call", "tool_result", "delta"]
    sent_again = openai_fake.requests[-1].json["messages"]
    assert sent_again[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a":1}'}
    assert sent_again[2]["content"] == "3"


# --- heartbeats, leases, cancels ---


async def test_heartbeats_carry_the_text_and_the_usage_so_far(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = ENDLESS
    tasks = {chat.add().task_id, chat.add().task_id}
    async with working(chat, nats_server.url, openai, drain_seconds=0):
        await wake(bus, 2)
        await chat.until(lambda: any(sum("word2 " in beat.text for beat in beats) == 2 for beats in chat.heartbeats))
    last = chat.heartbeats[-1]
    assert {beat.task_id for beat in last} == tasks
    for beat in last:
        assert beat.text.startswith("word1 word2 ")
        assert beat.usage.estimated
        assert beat.usage.output_tokens == -(-len(beat.text) // 4)


async def test_a_run_whose_lease_is_lost_stops_and_writes_nothing(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = ENDLESS
    task = chat.add()
    async with working(chat, nats_server.url, openai) as worker:
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests)
        chat.lost.add(task.task_id)
        await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    assert worker.leases_lost == 1
    assert chat.completed == []
    assert chat.failed == []


async def test_an_end_that_comes_too_late_is_dropped_and_counted(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(first_token_delay_ms=50)
    task = chat.add()
    async with working(chat, nats_server.url, openai, heartbeat_seconds=60) as worker:
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests)
        chat.attempts[task.task_id] += 1  # another agent has it now
    assert worker.leases_lost == 1
    assert chat.completed == []


async def test_a_newer_attempt_in_the_same_process_ends_the_older_one(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(ENDLESS)
    task = chat.add()
    async with working(chat, nats_server.url, openai) as worker:
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests)
        chat.add(task_id=task.task_id)
        await wake(bus)
        await chat.until(lambda: chat.completed)
        await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    assert chat.completed[0].attempt == 2
    assert worker.leases_lost == 1


@pytest.mark.parametrize("framework", ["none", "langgraph"])
@pytest.mark.parametrize("way", ["hint", "heartbeat"])
async def test_a_cancel_closes_the_call_and_keeps_what_was_written(
    way: str,
    framework: str,
    chat: FakeChat,
    bus: Bus,
    nats_server: Nats,
    openai: OpenAICompatible,
    openai_fake: FakeOpenAI,
) -> None:
    openai_fake.default = ENDLESS
    task = chat.add(framework=framework)
    async with working(chat, nats_server.url, openai, heartbeat_seconds=60 if way == "hint" else 0.1):
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests and openai_fake.requests[0].pieces_sent > 5)
        if way == "hint":
            await bus.publish(CANCEL_SUBJECT, task.task_id.encode())
        else:
            chat.cancelled.add(task.task_id)
        await chat.until(lambda: chat.completed)
        await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    [completed] = chat.completed
    assert completed.cancelled
    assert completed.finish_reason == "cancelled"
    assert completed.content.startswith("word1 word2 ")
    assert completed.usage.output_tokens == -(-len(completed.content) // 4)
    assert completed.last_event > 0


async def test_a_cancel_of_a_task_that_runs_elsewhere_does_nothing(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(first_token_delay_ms=50)
    chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests)
        await bus.publish(CANCEL_SUBJECT, b"\xff not a task of ours")
        await chat.until(lambda: chat.completed)
    assert not chat.completed[0].cancelled


# --- chat is away ---


async def test_an_end_is_reported_once_chat_is_back(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    chat.refusals["CompleteTask"] = 3
    chat.refusals["HeartbeatTasks"] = 2
    chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.completed)
    assert chat.completed[0].content == PARIS


async def test_a_wake_up_whose_claim_failed_comes_again(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    chat.refusals["ClaimTasks"] = 2
    chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await chat.until(lambda: chat.completed)
        await queue_is_empty(bus)


async def test_an_agent_that_starts_before_chat_works_once_chat_is_there(
    bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    chat = FakeChat(free_port())
    chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await ready(bus)
        async with chat:
            await chat.until(lambda: chat.completed)


# --- stop ---


async def test_a_stop_lets_the_runs_finish_and_takes_no_more(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(first_token_delay_ms=300)
    chat.add()
    async with working(chat, nats_server.url, openai):
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests)
    assert len(chat.completed) == 1
    chat.add()
    await wake(bus)
    await queue_holds(bus, 1)
    assert len(chat.queue) == 1


async def test_a_run_that_is_not_done_in_time_is_left_to_another_agent(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = ENDLESS
    chat.add()
    async with working(chat, nats_server.url, openai, drain_seconds=0.1):
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests)
    await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    assert chat.completed == []
    assert chat.failed == []


async def test_an_idle_worker_stops_at_once(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    async with asyncio.timeout(5):
        async with working(chat, nats_server.url, openai, drain_seconds=60):
            await ready(bus)


# --- NATS is away, or not what it was ---


async def test_an_agent_that_starts_before_nats_works_once_nats_is_there(
    tmp_path: Path, chat: FakeChat, openai: OpenAICompatible
) -> None:
    server = new_nats(tmp_path)
    chat.add()
    async with working(chat, server.url, openai):
        await asyncio.to_thread(server.start)
        try:
            async with connected(server) as bus:
                await ready(bus)
                await wake(bus)
                await chat.until(lambda: chat.completed)
        finally:
            server.stop()


@pytest.mark.parametrize("what", ["stream", "consumer"])
async def test_a_stream_or_consumer_deleted_under_load_is_made_again_at_once(
    what: str, chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible
) -> None:
    """Five times within less than five silences: the server's word is heard."""
    async with working(chat, nats_server.url, openai), asyncio.timeout(4 * SILENCE_SECONDS):
        for _ in range(5):
            await ready(bus)
            task = chat.add()
            await wake(bus)
            await chat.until(lambda: chat.completed and chat.completed[-1].task_id == task.task_id)  # noqa: B023
            if what == "stream":
                await bus.js.delete_stream(JOBS_STREAM)
            else:
                await bus.js.delete_consumer(JOBS_STREAM, JOBS_CONSUMER)
    assert len(chat.completed) == 5


async def test_a_stream_deleted_while_every_slot_is_taken_is_made_again(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour(first_token_delay_ms=300))
    chat.add()
    async with working(chat, nats_server.url, openai, slots=1):
        await wake(bus)
        await openai_fake.until(lambda: openai_fake.requests)
        await bus.js.delete_stream(JOBS_STREAM)
        await chat.until(lambda: chat.completed)
        await ready(bus)
        chat.add()
        await wake(bus)
        await chat.until(lambda: len(chat.completed) == 2)


async def test_a_server_that_is_killed_and_comes_back_empty_is_worked_with_again(
    tmp_path: Path, chat: FakeChat, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour(tokens=20, token_delay_ms=50))
    with new_nats(tmp_path) as server:
        async with working(chat, server.url, openai), connected(server) as bus:
            await ready(bus)
            chat.add()
            await wake(bus)
            await openai_fake.until(lambda: openai_fake.requests)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.wipe)
            await chat.until(lambda: chat.completed)  # the run needs no NATS
            await asyncio.to_thread(server.start)
            await reconnected(bus)
            await ready(bus)
            await eventually(lambda: has_status_bucket(bus))
            chat.add()
            await wake(bus)
            await chat.until(lambda: len(chat.completed) == 2)


async def test_silence_makes_the_worker_ask_again(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wakeups, "PULL_SUBJECT", "backendai.nobody_answers")
        patch.setattr(wakeups, "SILENCE_SECONDS", 0.3)
        async with listening(bus, "backendai.nobody_answers") as asked, working(chat, nats_server.url, openai):
            await eventually(lambda: asyncio.sleep(0, asked))
            patch.undo()
            await ready(bus)
            chat.add()
            await wake(bus)
            await chat.until(lambda: chat.completed)


async def test_a_server_that_restarts_with_its_store_is_asked_again(
    tmp_path: Path, chat: FakeChat, openai: OpenAICompatible
) -> None:
    """It has forgotten the requests that waited."""
    with new_nats(tmp_path) as server:
        async with working(chat, server.url, openai), connected(server) as bus:
            await ready(bus)
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await reconnected(bus)
            await ready(bus)
            chat.add()
            await wake(bus)
            await chat.until(lambda: chat.completed)


# --- what is told to nobody ---


async def test_neither_the_conversation_nor_a_key_is_logged(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, openai_fake: FakeOpenAI
) -> None:
    secret = "the-secret-of-the-conversation"

    async def leak(_: str) -> str:
        raise ValueError(f"could not parse: {secret}")

    openai_fake.queue.extend([Behaviour("", tool_calls=(("leak", "{}"),)), Behaviour(error="rate_limit")])
    openai_fake.default = Behaviour(secret)
    chat.add(text=secret)
    with structlog.testing.capture_logs() as logs:
        async with working(
            chat, nats_server.url, openai, tools=Tools(Tool("leak", "Leaks.", {"type": "object"}, leak))
        ):
            await wake(bus)
            await chat.until(lambda: chat.completed)
    assert {"tool_failed", "provider_retry", "run_ended"} <= {entry["event"] for entry in logs}
    assert secret not in str(logs)
    assert KEY not in str(logs)


async def test_what_breaks_inside_fails_the_task_without_the_errors_words(
    chat: FakeChat, bus: Bus, nats_server: Nats, openai: OpenAICompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        async def answer(self, _: object) -> Completed:
            return self.break_down()

        def break_down(self) -> Completed:
            raise KeyError("the-secret-of-the-conversation")

    monkeypatch.setitem(FRAMEWORKS, "none", Broken())
    chat.add()
    with structlog.testing.capture_logs() as logs:
        async with working(chat, nats_server.url, openai):
            await wake(bus)
            await chat.until(lambda: chat.failed)
    assert chat.failed[0].error_code == "internal_error"
    assert "secret" not in chat.failed[0].error_detail
    [entry] = [entry for entry in logs if entry["event"] == "run_failed_inside"]
    assert entry["error"] == "KeyError"
    assert any("break_down" in frame for frame in entry["trace"])
    assert "secret" not in str(logs)
