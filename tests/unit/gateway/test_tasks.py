"""Polling and cancelling: from the status bucket where that is allowed, else from chat."""

import time
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from backendai.chat.v1 import chat_pb2
from backendai.common.v1 import common_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.server import Gateway
from services.kit.errors import NotFound, PermissionDenied
from tests.unit.gateway.conftest import FakeServices, client_of
from tests.unit.gateway.samples import (
    ANSWER,
    MESSAGE,
    MESSAGES,
    NO_TEMPERATURE,
    NO_TEMPERATURE_OUT,
    NOON_TEXT,
    STATUS,
    TASK,
    a_completed_task,
    a_failed_task,
    a_message,
    a_task,
)

RUNNING = {
    "task_id": TASK,
    "status": "processing",
    "attempt": 1,
    "created_at": NOON_TEXT,
    "updated_at": NOON_TEXT,
    "user_message_id": MESSAGE,
    "ai_messages": None,
    "usage": None,
    "credits": {"held": "0.005", "charged": "0"},
    "warnings": [],
    "error": None,
}


def chat_says(services: FakeServices, task: chat_pb2.Task) -> None:
    services.answers["GetTask"] = chat_pb2.GetTaskResponse(task=task, user_message=a_message())


async def test_a_running_task_has_all_documented_fields(client: httpx.AsyncClient, services: FakeServices) -> None:
    chat_says(services, a_task())
    assert (await client.get(STATUS)).json() == RUNNING


async def test_a_completed_task_shows_answer_usage_and_charge(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    chat_says(services, a_completed_task())
    shown = (await client.get(STATUS)).json()
    assert shown["status"] == "completed"
    assert [message["id"] for message in shown["ai_messages"]] == [ANSWER]
    assert shown["usage"] == {"input_tokens": 12, "output_tokens": 3}
    assert shown["credits"] == {"held": "0", "charged": "0.0000015"}
    assert shown["error"] is None


@pytest.mark.parametrize("task", [a_completed_task, a_failed_task])
async def test_a_task_shows_the_warnings_of_its_run(
    client: httpx.AsyncClient, services: FakeServices, task: Callable[..., chat_pb2.Task]
) -> None:
    chat_says(services, task(warnings=[NO_TEMPERATURE]))
    shown = (await client.get(STATUS)).json()
    assert shown["warnings"] == [NO_TEMPERATURE_OUT]


async def test_a_failed_task_shows_why(client: httpx.AsyncClient, services: FakeServices) -> None:
    chat_says(services, a_failed_task("provider_timeout"))
    shown = (await client.get(STATUS)).json()
    assert (shown["status"], shown["ai_messages"]) == ("failed", None)
    assert shown["error"] == {"code": "provider_timeout", "detail": "The provider answered with an error."}


async def test_a_cancelled_task_shows_what_was_written(client: httpx.AsyncClient, services: FakeServices) -> None:
    cancelled = a_completed_task(state=chat_pb2.TASK_STATE_CANCELLED)
    services.answers["CancelTask"] = chat_pb2.CancelTaskResponse(task=cancelled)
    answer = await client.delete(STATUS)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert len(answer.json()["ai_messages"]) == 1
    assert services.requests("CancelTask")[0].task_id == TASK


async def test_a_reader_may_not_cancel(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["CancelTask"] = PermissionDenied()
    assert (await client.delete(STATUS)).status_code == 403


@pytest.fixture
async def poller(listening: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """alice at a gateway whose NATS has a status bucket."""
    await listening.bus.ensure_status()
    async with client_of(listening) as client:
        yield client
    await listening.bus.js.delete_key_value("backendai_tasks")


async def written(gateway: Gateway, *, age: float = 0, state: int = chat_pb2.TASK_STATE_PROCESSING) -> None:
    """The agent's entry for the task, as of so many seconds ago."""
    status = chat_pb2.TaskStatus(
        state=state,  # type: ignore[arg-type]
        attempt=7,
        updated_at=Timestamp(seconds=int(time.time() - age)),
        created_at=a_task().created_at,
        user_message_id=MESSAGE,
        held_nano=5_000_000,
    )
    bucket = await gateway.bus.ensure_status()
    await bucket.put(TASK, status.SerializeToString())


async def test_a_fresh_entry_answers_once_chat_has_allowed_the_task(
    poller: httpx.AsyncClient, listening: Gateway, services: FakeServices
) -> None:
    await written(listening)
    chat_says(services, a_task())
    shown = [(await poller.get(STATUS)).json() for _ in range(3)]
    assert len(services.requests("GetTask")) == 1
    assert [poll["attempt"] for poll in shown] == [1, 7, 7]
    assert {**shown[2], "attempt": 1, "updated_at": NOON_TEXT} == RUNNING


async def test_a_task_that_was_just_sent_here_is_allowed_from_the_start(
    poller: httpx.AsyncClient, listening: Gateway, services: FakeServices
) -> None:
    await written(listening)
    services.answers["SendMessage"] = chat_pb2.SendMessageResponse(task=a_task(), user_message=a_message())
    await poller.post(MESSAGES, json={"content": "x"}, headers={"Prefer": "respond-async"})
    assert (await poller.get(STATUS)).json()["attempt"] == 7
    assert services.requests("GetTask") == []


async def test_another_user_is_never_answered_from_the_bucket(
    poller: httpx.AsyncClient, listening: Gateway, services: FakeServices
) -> None:
    await written(listening)
    chat_says(services, a_task())
    await poller.get(STATUS)
    services.answers["GetTask"] = NotFound()
    async with client_of(listening, sub="mallory") as mallory:
        assert (await mallory.get(STATUS)).status_code == 404
    other_session = STATUS.replace("000000000003", "000000000009")
    assert (await poller.get(other_session)).status_code == 404


@pytest.mark.parametrize(
    ("age", "state"), [(11, chat_pb2.TASK_STATE_PROCESSING), (0, chat_pb2.TASK_STATE_COMPLETED), (0, 0)]
)
async def test_old_and_ended_entries_are_left_to_chat(
    poller: httpx.AsyncClient, listening: Gateway, services: FakeServices, age: float, state: int
) -> None:
    await written(listening, age=age, state=state)
    chat_says(services, a_task())
    await poller.get(STATUS)
    await poller.get(STATUS)
    assert len(services.requests("GetTask")) == 2


async def test_a_permission_is_good_for_ten_seconds(
    poller: httpx.AsyncClient, listening: Gateway, services: FakeServices
) -> None:
    now = time.time()
    listening.parts.statuses._clock = lambda: now
    chat_says(services, a_task())
    await poller.get(STATUS)
    now += 10
    await written(listening, age=-10)
    await poller.get(STATUS)
    assert len(services.requests("GetTask")) == 2


async def test_an_ended_task_is_not_said_to_run_by_a_late_entry(
    poller: httpx.AsyncClient, listening: Gateway, services: FakeServices
) -> None:
    chat_says(services, a_task())
    await poller.get(STATUS)
    chat_says(services, a_completed_task())
    assert (await poller.get(STATUS)).json()["status"] == "completed"
    await written(listening)
    assert (await poller.get(STATUS)).json()["status"] == "completed"


async def test_a_missing_entry_or_bucket_or_rubbish_in_it_is_left_to_chat(
    poller: httpx.AsyncClient, listening: Gateway, services: FakeServices
) -> None:
    chat_says(services, a_task())
    await poller.get(STATUS)
    await poller.get(STATUS)
    await (await listening.bus.ensure_status()).put(TASK, b"\xff\xff rubbish")
    await poller.get(STATUS)
    await listening.bus.js.delete_key_value("backendai_tasks")
    await poller.get(STATUS)
    await listening.bus.ensure_status()
    assert len(services.requests("GetTask")) == 4


async def test_polls_without_nats_are_answered_from_chat(client: httpx.AsyncClient, services: FakeServices) -> None:
    chat_says(services, a_task())
    assert [(await client.get(STATUS)).status_code for _ in range(3)] == [200] * 3
    assert len(services.requests("GetTask")) == 3


async def test_what_is_remembered_is_bounded(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, services: FakeServices
) -> None:
    monkeypatch.setattr("gateway.statuses.MAX_ALLOWED", 3)
    statuses = gateway.parts.statuses
    for number in range(10):
        statuses.allow(common_pb2.Caller(user_id=f"user-{number}"), a_task())
    assert len(statuses._allowed) == 3
