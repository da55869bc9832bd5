"""Sending: one path from the request to its ending, whatever NATS, chat and the provider do."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from backendai.chat.v1 import chat_pb2

from gateway.server import Gateway
from services.kit.bus import events_subject
from services.kit.errors import DomainError, Kind, NotFound, Unavailable
from tests.unit.gateway.conftest import FakeServices, client_of, settings_for, until
from tests.unit.gateway.samples import (
    ANSWER,
    MESSAGE,
    MESSAGES,
    NO_TEMPERATURE,
    NO_TEMPERATURE_OUT,
    NOON_TEXT,
    SESSION,
    STATUS,
    TASK,
    a_completed_task,
    a_failed_task,
    a_message,
    a_task,
    an_answer,
)

BODY = {"role": "user", "content": "What is the capital of France?"}
QUESTION = {
    "id": MESSAGE,
    "session_id": SESSION,
    "parent_message_id": None,
    "sequence_number": 1,
    "role": "user",
    "content": "What is the capital of France?",
    "tool_calls": None,
    "tool_call_id": None,
    "user_id": "alice",
    "ai_provider": None,
    "ai_model": None,
    "finish_reason": None,
    "usage": None,
    "created_at": NOON_TEXT,
}
PARIS = {
    **QUESTION,
    "id": ANSWER,
    "parent_message_id": MESSAGE,
    "sequence_number": 2,
    "role": "assistant",
    "content": "Paris.",
    "user_id": None,
    "ai_provider": "local",
    "ai_model": "small",
    "finish_reason": "stop",
    "usage": {"input_tokens": 12, "output_tokens": 3},
}


class TaskInProgress(DomainError):
    """As chat raises it."""

    kind, reason, detail = Kind.CONFLICT, "TASK_IN_PROGRESS", "The session is answering another message."


class InsufficientCredits(DomainError):
    """As billing raises it, through chat."""

    kind, reason, detail = Kind.PRECONDITION, "INSUFFICIENT_CREDITS", "Nothing is available."


class ContextTooLong(DomainError):
    """As chat raises it."""

    kind, reason, detail = Kind.INVALID, "CONTEXT_TOO_LONG", "The message can't fit the model's context."


class SessionNotActive(DomainError):
    """As chat raises it."""

    kind, reason, detail = Kind.PRECONDITION, "SESSION_NOT_ACTIVE", "Only an active session can send."


Ending = Callable[[str], Awaitable[None]]


def accepting(services: FakeServices, then: Ending | None = None) -> None:
    """Chat takes every send; what follows happens after its answer."""
    background: set[asyncio.Task[None]] = set()

    def accept(request: chat_pb2.SendMessageRequest) -> chat_pb2.SendMessageResponse:
        if then is not None:
            background.add(asyncio.ensure_future(then(request.task_id)))
        task = a_task(id=request.task_id)
        return chat_pb2.SendMessageResponse(task=task, user_message=a_message(content=request.content))

    services.answers["SendMessage"] = accept


def announcing(gateway: Gateway, *events: chat_pb2.TaskEvent) -> Ending:
    """Chat and the agent publish these about the task."""

    async def announce(task_id: str) -> None:
        for event in events:
            if event.WhichOneof("event") == "ended":
                event.ended.id = task_id
            await gateway.bus.client.publish(events_subject(task_id), event.SerializeToString())

    return announce


def ended(task: chat_pb2.Task) -> chat_pb2.TaskEvent:
    return chat_pb2.TaskEvent(attempt=1, seq=3, ended=task)


async def send(gateway: Gateway, **headers: str) -> httpx.Response:
    async with client_of(gateway) as client:
        renamed = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post(MESSAGES, json=BODY, headers=renamed)


async def test_an_answered_message_is_201_with_the_answer_and_its_cost(
    listening: Gateway, services: FakeServices
) -> None:
    delta = chat_pb2.TaskEvent(attempt=1, seq=1, delta="Par")
    accepting(services, announcing(listening, delta, ended(a_completed_task())))
    answer = await send(listening)
    assert answer.status_code == 201
    assert answer.json() == {
        "task_id": services.requests("SendMessage")[0].task_id,
        "user_message": QUESTION,
        "ai_messages": [PARIS],
        "usage": {"input_tokens": 12, "output_tokens": 3},
        "credits_charged": "0.0000015",
        "warnings": [],
    }
    assert services.requests("GetTask") == []


async def test_an_answer_has_the_warnings_of_its_run(listening: Gateway, services: FakeServices) -> None:
    accepting(services, announcing(listening, ended(a_completed_task(warnings=[NO_TEMPERATURE]))))
    assert (await send(listening)).json()["warnings"] == [NO_TEMPERATURE_OUT]


async def test_a_twin_has_the_warnings_of_the_run(gateway: Gateway, services: FakeServices) -> None:
    twin = a_completed_task(warnings=[NO_TEMPERATURE])
    services.answers["SendMessage"] = chat_pb2.SendMessageResponse(task=twin, user_message=a_message())
    assert (await send(gateway, Idempotency_Key="again")).json()["warnings"] == [NO_TEMPERATURE_OUT]


async def test_the_turn_is_begun_under_a_fresh_uuid_v7(listening: Gateway, services: FakeServices) -> None:
    accepting(services, announcing(listening, ended(a_completed_task())))
    await send(listening)
    await send(listening)
    first, second = (request.task_id for request in services.requests("SendMessage"))
    assert first < second
    assert first[14] == "7"


async def test_tool_traffic_is_shown_as_it_was_stored(listening: Gateway, services: FakeServices) -> None:
    call = an_answer(content="", tool_calls_json='[{"id":"c1","type":"function"}]', finish_reason="tool_calls")
    result = an_answer(role="tool", content="4", tool_call_id="c1", finish_reason="")
    accepting(services, announcing(listening, ended(a_completed_task(ai_messages=[call, result, an_answer()]))))
    shown = (await send(listening)).json()["ai_messages"]
    assert shown[0]["tool_calls"] == [{"id": "c1", "type": "function"}]
    assert (shown[1]["tool_call_id"], shown[1]["finish_reason"]) == ("c1", None)


@pytest.mark.parametrize(
    ("code", "status"),
    [("provider_error", 502), ("provider_timeout", 504), ("deadline_exceeded", 502), ("poison", 502)],
)
async def test_a_failed_run_is_a_problem_with_its_task(
    listening: Gateway, services: FakeServices, code: str, status: int
) -> None:
    accepting(services, announcing(listening, ended(a_failed_task(code))))
    answer = await send(listening)
    assert answer.status_code == status
    problem = answer.json()
    assert (problem["code"], problem["task_id"]) == (code, services.requests("SendMessage")[0].task_id)
    assert problem["detail"] == "The provider answered with an error."


async def test_a_cancelled_run_is_409_with_its_task(listening: Gateway, services: FakeServices) -> None:
    accepting(services, announcing(listening, ended(a_completed_task(state=chat_pb2.TASK_STATE_CANCELLED))))
    answer = await send(listening)
    assert (answer.status_code, answer.json()["code"]) == (409, "task_cancelled")
    assert answer.json()["task_id"] == services.requests("SendMessage")[0].task_id


def assert_accepted(answer: httpx.Response, services: FakeServices) -> None:
    task_id = services.requests("SendMessage")[0].task_id
    assert answer.status_code == 202
    assert answer.json() == {"task_id": task_id, "status": "processing"}
    assert answer.headers["location"] == STATUS.replace(TASK, task_id)


async def test_with_nats_down_a_send_is_202_at_once(gateway: Gateway, services: FakeServices) -> None:
    accepting(services)
    assert_accepted(await send(gateway), services)


async def test_past_the_sync_timeout_it_is_202_and_the_run_goes_on(
    listening: Gateway, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.turns.NET_SECONDS", 0.4)
    accepting(services)
    services.answers["GetTask"] = lambda request: chat_pb2.GetTaskResponse(task=a_task(id=request.task_id))
    assert_accepted(await send(listening, Prefer="wait=1"), services)
    assert len(services.requests("GetTask")) >= 2


async def test_an_end_that_nobody_heard_of_is_found_by_the_next_read(
    listening: Gateway, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.turns.NET_SECONDS", 0.02)
    accepting(services)
    reads = iter(
        [
            a_task(),
            Unavailable(),
            a_completed_task(held_nano=5_000_000, charged_nano=0),  # ended, and not paid yet
            a_completed_task(),
        ]
    )

    def read(request: chat_pb2.GetTaskRequest) -> Any:
        found = next(reads)
        return chat_pb2.GetTaskResponse(task=found) if isinstance(found, chat_pb2.Task) else found

    services.answers["GetTask"] = read
    answer = await send(listening)
    assert (answer.status_code, answer.json()["credits_charged"]) == (201, "0.0000015")
    assert len(services.requests("GetTask")) == 4


async def test_an_answer_too_long_for_an_event_is_read_from_chat(listening: Gateway, services: FakeServices) -> None:
    accepting(services, announcing(listening, ended(a_completed_task(ai_messages=[]))))
    services.answers["GetTask"] = chat_pb2.GetTaskResponse(task=a_completed_task())
    answer = await send(listening)
    assert (answer.status_code, answer.json()["ai_messages"]) == (201, [PARIS])


async def test_a_session_deleted_under_a_waiting_send_is_404(
    listening: Gateway, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.turns.NET_SECONDS", 0.02)
    accepting(services)
    services.answers["GetTask"] = NotFound()
    assert (await send(listening)).status_code == 404


@pytest.mark.parametrize(
    "prefer", ["respond-async", "RESPOND-ASYNC", "wait=0", "respond-async; x=1", "a, respond-async"]
)
async def test_who_prefers_not_to_wait_gets_202(listening: Gateway, services: FakeServices, prefer: str) -> None:
    accepting(services)
    answer = await send(listening, Prefer=prefer)
    assert_accepted(answer, services)
    assert answer.headers["preference-applied"] == ("wait=0" if "wait" in prefer else "respond-async")


@pytest.mark.parametrize("prefer", ["wait", "wait=", "wait=soon", "wait=-1", "wait=1.5", "return=minimal", ",", "é"])
async def test_preferences_that_are_none_are_ignored(listening: Gateway, services: FakeServices, prefer: str) -> None:
    accepting(services, announcing(listening, ended(a_completed_task())))
    async with client_of(listening) as client:
        answer = await client.post(MESSAGES, json=BODY, headers=[("Prefer", prefer.encode())])  # type: ignore[arg-type]
    assert answer.status_code == 201
    assert "preference-applied" not in answer.headers


async def test_an_async_gateway_answers_202_unless_asked_to_wait(services: FakeServices, listening: Gateway) -> None:
    asynchronous = Gateway(settings_for(services.address, nats_url=listening.bus.url, agent_async_enabled=True))
    asynchronous.start()
    await until(lambda: asynchronous.bus.connected)
    accepting(services, announcing(listening, ended(a_completed_task())))
    statuses = [(await send(asynchronous, **headers)).status_code for headers in ({}, {"Prefer": "wait=5"})]
    await asynchronous.close()
    assert statuses == [202, 201]


@pytest.mark.parametrize(
    ("twin", "status"),
    [(a_completed_task(), 201), (a_task(), 202), (a_failed_task(), 502), (a_failed_task("provider_timeout"), 504)],
    ids=["completed", "running", "failed", "timed out"],
)
async def test_a_twin_is_answered_from_its_present_state(
    listening: Gateway, services: FakeServices, twin: chat_pb2.Task, status: int
) -> None:
    services.answers["SendMessage"] = chat_pb2.SendMessageResponse(task=twin, user_message=a_message())
    started = time.monotonic()
    answer = await send(listening, Idempotency_Key="again")
    assert answer.status_code == status
    assert answer.json()["task_id"] == TASK
    assert time.monotonic() - started < 1
    assert services.requests("SendMessage")[0].idempotency_key == "again"


async def test_a_twin_whose_message_is_gone_shows_none(gateway: Gateway, services: FakeServices) -> None:
    services.answers["SendMessage"] = chat_pb2.SendMessageResponse(task=a_completed_task())
    assert (await send(gateway)).json()["user_message"] is None


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TaskInProgress(task_id=TASK), 409, "task_in_progress"),
        (InsufficientCredits(available="0"), 402, "insufficient_credits"),
        (ContextTooLong(context_window_tokens="4096"), 422, "context_too_long"),
        (SessionNotActive(status="archived"), 409, "session_not_active"),
        (Unavailable(), 503, "unavailable"),
    ],
)
async def test_a_send_that_chat_refuses_says_why(
    listening: Gateway, services: FakeServices, error: DomainError, status: int, code: str
) -> None:
    services.answers["SendMessage"] = error
    answer = await send(listening)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json().get("task_id") == (TASK if code == "task_in_progress" else None)
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


async def test_nobody_listens_on_once_the_answer_is_out(listening: Gateway, services: FakeServices) -> None:
    before = len(listening.bus.client._subs)
    accepting(services, announcing(listening, ended(a_completed_task())))
    await send(listening)
    services.answers["SendMessage"] = Unavailable()
    await send(listening)
    assert len(listening.bus.client._subs) == before
    assert listening.parts.turns._waiting == set()


async def test_who_waits_when_the_gateway_stops_is_told_that_the_run_goes_on(
    listening: Gateway, services: FakeServices
) -> None:
    accepting(services)
    waiting = asyncio.create_task(send(listening))
    await until(lambda: listening.parts.turns._waiting)
    listening.parts.turns.stop()
    assert_accepted(await waiting, services)


async def test_one_message_can_be_read(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["GetMessage"] = chat_pb2.GetMessageResponse(message=an_answer())
    answer = await client.get(f"{MESSAGES}{ANSWER}/")
    assert (answer.status_code, answer.json()) == (200, PARIS)
    request = services.requests("GetMessage")[0]
    assert (request.session_id, request.message_id) == (SESSION, ANSWER)


async def test_a_list_of_messages_shows_them(client: httpx.AsyncClient, services: FakeServices) -> None:
    messages = [a_message(), an_answer()]
    services.answers["ListMessages"] = chat_pb2.ListMessagesResponse(messages=messages)
    assert (await client.get(MESSAGES)).json()["results"] == [QUESTION, PARIS]


async def test_a_guest_may_try_to_send_where_it_has_a_share(guest: httpx.AsyncClient, services: FakeServices) -> None:
    accepting(services)
    assert (await guest.post(MESSAGES, json=BODY)).status_code == 202
    assert services.requests("OpenAccount") == []


async def test_no_usage_is_null(gateway: Gateway, services: FakeServices) -> None:
    task = a_completed_task(usage=None, charged_nano=2_000_000_000)
    services.answers["SendMessage"] = chat_pb2.SendMessageResponse(task=task, user_message=a_message())
    shown = (await send(gateway)).json()
    assert (shown["usage"], shown["credits_charged"]) == (None, "2")
