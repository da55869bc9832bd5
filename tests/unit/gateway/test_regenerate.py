"""Answering again, and deleting messages."""

from typing import Any

import httpx
import pytest
from backendai.chat.v1 import chat_pb2 as pb

from gateway.server import Gateway
from services.kit.errors import DomainError, Kind, PermissionDenied
from tests.unit.gateway.conftest import FakeServices, client_of
from tests.unit.gateway.samples import MESSAGE, MESSAGES, STATUS, TASK, a_completed_task, a_message, a_task

REGENERATE = f"{MESSAGES}regenerate/"


class NothingToRegenerate(DomainError):
    """As chat says it."""

    kind, reason, detail = Kind.PRECONDITION, "NOTHING_TO_REGENERATE", "There is no message to answer again."


class TaskInProgress(DomainError):
    """As chat says it."""

    kind, reason, detail = Kind.CONFLICT, "TASK_IN_PROGRESS", "The session is answering another message."


def ended(request: pb.RegenerateAnswerRequest) -> pb.GetTaskResponse:
    return pb.GetTaskResponse(task=a_completed_task(id=request.task_id), user_message=a_message())


async def test_it_is_answered_as_a_send_is(listening: Gateway, services: FakeServices) -> None:
    services.answers["RegenerateAnswer"] = lambda request: pb.RegenerateAnswerResponse(
        task=a_task(id=request.task_id), user_message=a_message()
    )
    services.answers["GetTask"] = ended
    async with client_of(listening) as client:
        again = await client.post(REGENERATE, headers={"Idempotency-Key": "k"})
    assert again.status_code == 201, again.text
    assert again.json()["user_message"]["id"] == MESSAGE
    assert [message["content"] for message in again.json()["ai_messages"]] == ["Paris."]
    assert services.requests("RegenerateAnswer")[0].idempotency_key == "k"


async def test_who_prefers_not_to_wait_gets_202_and_where_to_poll(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["RegenerateAnswer"] = pb.RegenerateAnswerResponse(task=a_task(), user_message=a_message())
    accepted = await client.post(REGENERATE, headers={"Prefer": "respond-async"})
    assert (accepted.status_code, accepted.json()) == (202, {"task_id": TASK, "status": "processing"})
    assert accepted.headers["location"] == STATUS


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (NothingToRegenerate(), 409, "nothing_to_regenerate"),
        (TaskInProgress(task_id=TASK), 409, "task_in_progress"),
        (PermissionDenied(), 403, "permission_denied"),
    ],
)
async def test_what_chat_refuses_is_said(
    client: httpx.AsyncClient, services: FakeServices, refusal: DomainError, status: int, code: str
) -> None:
    services.answers["RegenerateAnswer"] = refusal
    refused = await client.post(REGENERATE)
    assert (refused.status_code, refused.json()["code"]) == (status, code)


@pytest.mark.parametrize("body", [{"content": "another"}, {"message_id": MESSAGE}, []])
async def test_it_takes_no_wishes(client: httpx.AsyncClient, services: FakeServices, body: Any) -> None:
    refused = await client.post(REGENERATE, json=body)
    assert refused.status_code == 422
    assert not services.requests("RegenerateAnswer")


async def test_deleting_a_message_is_204(client: httpx.AsyncClient, services: FakeServices) -> None:
    deleted = await client.delete(f"{MESSAGES}{MESSAGE}/")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert services.requests("DeleteMessage")[0].message_id == MESSAGE


async def test_while_a_task_runs_no_message_is_deleted(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["DeleteMessage"] = TaskInProgress(task_id=TASK)
    refused = await client.delete(f"{MESSAGES}{MESSAGE}/")
    assert (refused.status_code, refused.json()["task_id"]) == (409, TASK)
