"""Messages of a session: `…/chats/{session_id}/messages/`. Sending one starts a turn."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import quote

import orjson
from backendai.chat.v1 import chat_pb2 as pb
from fastapi import APIRouter, Body, Query, Response
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from gateway.answers import TokensOut, answer, moment, tokens_out
from gateway.bodies import storable
from gateway.calls import Cursor, InWorkspace, Limit, MessageId, SessionId, WorkspaceCall
from gateway.preferences import (
    IdempotencyKeyHeader,
    PreferHeader,
    Wait,
    fingerprint,
    idempotency_key_of,
    wait_of,
)
from gateway.problems import Problem, problems
from gateway.routing import PrivateRoute
from gateway.turns import Turn
from services.kit.money import to_credits

router = APIRouter(
    prefix="/api/workspaces/{workspace_id}/chats/{session_id}/messages", tags=["messages"], route_class=PrivateRoute
)


def _not_blank(text: str) -> str:
    """Stored as it came, but there must be something in it."""
    if not text.strip():
        raise ValueError("must not be blank")
    return storable(text)


Content = Annotated[str, Field(min_length=1, max_length=100_000), AfterValidator(_not_blank)]


@with_config(
    ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"role": "user", "content": "What is the capital of France?"}]},
    )
)
class MessageIn(TypedDict):
    """A message to send."""

    role: NotRequired[Literal["user"]]
    content: Content


class MessageOut(TypedDict):
    """A stored message."""

    id: str
    session_id: str
    parent_message_id: str | None
    sequence_number: int
    role: str
    content: str
    tool_calls: list[dict[str, Any]] | None
    tool_call_id: str | None
    user_id: str | None
    ai_provider: str | None
    ai_model: str | None
    finish_reason: str | None
    usage: TokensOut | None
    created_at: str


class MessagePage(TypedDict):
    """One page of messages."""

    next: str | None
    previous: str | None
    results: list[MessageOut]


class TurnOut(TypedDict):
    """A turn that was answered."""

    task_id: str
    user_message: MessageOut | None
    ai_messages: list[MessageOut]
    usage: TokensOut | None
    credits_charged: str


class AcceptedOut(TypedDict):
    """A turn that still runs; `Location` is the path to poll."""

    task_id: str
    status: Literal["processing"]


def message_out(message: pb.Message) -> dict[str, Any]:
    """A message as JSON, in MessageOut's shape; tool calls go through as they are."""
    return {
        "id": message.id,
        "session_id": message.session_id,
        "parent_message_id": message.parent_message_id or None,
        "sequence_number": message.sequence_number,
        "role": message.role,
        "content": message.content,
        "tool_calls": orjson.Fragment(message.tool_calls_json) if message.tool_calls_json else None,
        "tool_call_id": message.tool_call_id or None,
        "user_id": message.user_id or None,
        "ai_provider": message.ai_provider or None,
        "ai_model": message.ai_model or None,
        "finish_reason": message.finish_reason or None,
        "usage": tokens_out(message.usage) if message.HasField("usage") else None,
        "created_at": moment(message.created_at),
    }


def turn_out(turn: Turn) -> dict[str, Any]:
    """An answered turn as JSON, in TurnOut's shape."""
    task, sent = turn.task, turn.user_message
    return {
        "task_id": task.id,
        "user_message": message_out(sent) if sent.id else None,
        "ai_messages": [message_out(message) for message in task.ai_messages],
        "usage": tokens_out(task.usage) if task.HasField("usage") else None,
        "credits_charged": to_credits(task.charged_nano),
    }


def ended_badly(task: pb.Task) -> Problem:
    """What a caller that waited is told of a run that brought no answer."""
    if task.state == pb.TASK_STATE_CANCELLED:
        return Problem(
            409, "task_cancelled", "The run was cancelled; its task tells what was written.", task_id=task.id
        )
    status = 504 if task.error_code == "provider_timeout" else 502
    return Problem(status, task.error_code or "task_failed", task.error_detail or "The run failed.", task_id=task.id)


def told(turn: Turn, wait: Wait, status_path: str) -> Response:
    """A turn in the state it is in: 201 answered, 202 running, else a problem."""
    applied = {"Preference-Applied": wait.applied} if wait.applied else {}
    if turn.task.state == pb.TASK_STATE_COMPLETED:
        return answer(turn_out(turn), 201, applied)
    if turn.task.state == pb.TASK_STATE_PROCESSING:
        accepted: AcceptedOut = {"task_id": turn.task.id, "status": "processing"}
        return answer(accepted, 202, {"Location": status_path, **applied})
    raise ended_badly(turn.task)


@router.get("/", operation_id="list_messages", response_model=MessagePage, responses=problems(400, 401, 404, 422))
async def list_messages(
    call: InWorkspace,
    session_id: SessionId,
    order: Annotated[Literal["asc", "desc"], Query(description="By sequence number.")] = "asc",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """The messages of a session, by sequence number."""
    filters = {"order": None if order == "asc" else order}
    listing = call.parts.cursors.listing(call.request, limit=limit, cursor=cursor, filters=filters)
    found = await call.parts.chat.ListMessages(
        pb.ListMessagesRequest(caller=call.caller, session_id=session_id, descending=order == "desc", page=listing.page)
    )
    return listing.answer([message_out(message) for message in found.messages], found.page)


@router.post(
    "/",
    status_code=201,
    operation_id="send_message",
    response_model=TurnOut,
    responses={
        202: {"model": AcceptedOut, "description": "The run goes on; poll `Location`."},
        **problems(400, 401, 402, 403, 404, 409, 413, 415, 422, 502, 503, 504),
    },
)
async def send_message(
    call: InWorkspace,
    session_id: SessionId,
    body: Annotated[MessageIn, Body()],
    idempotency_key: IdempotencyKeyHeader = None,
    prefer: PreferHeader = None,
) -> Response:
    """Send a message and get its answer, or a task to poll when that takes long or is preferred."""
    settings = call.parts.settings
    wait = wait_of(call.request, is_async=settings.agent_async_enabled, limit_seconds=settings.agent_sync_timeout_s)
    request = pb.SendMessageRequest(
        caller=call.caller,
        session_id=session_id,
        content=body["content"],
        idempotency_key=idempotency_key_of(call.request),
        request_fingerprint=fingerprint(body["content"]),
    )

    async def send(task_id: str) -> pb.SendMessageResponse:
        request.task_id = task_id
        return await call.parts.chat.SendMessage(request)

    async def read(task_id: str) -> pb.Task:
        return (await read_task(call, session_id, task_id)).task

    turn = await call.parts.turns.run(send, read, wait_seconds=wait.seconds)
    call.parts.statuses.allow(call.caller, turn.task)
    return told(turn, wait, _status_path(call, turn.task))


@router.get("/{message_id}/", operation_id="get_message", response_model=MessageOut, responses=problems(401, 404))
async def get_message(call: InWorkspace, session_id: SessionId, message_id: MessageId) -> Response:
    """One message of the session."""
    found = await call.parts.chat.GetMessage(
        pb.GetMessageRequest(caller=call.caller, session_id=session_id, message_id=message_id)
    )
    return answer(message_out(found.message))


async def read_task(call: WorkspaceCall, session_id: str, task_id: str) -> pb.GetTaskResponse:
    """A task as chat has it."""
    return await call.parts.chat.GetTask(pb.GetTaskRequest(caller=call.caller, session_id=session_id, task_id=task_id))


def _status_path(call: WorkspaceCall, task: pb.Task) -> str:
    """Where a task is polled."""
    chats = f"{call.request.scope.get('root_path', '')}/api/workspaces/{call.caller.workspace_id}/chats"
    return f"{quote(chats)}/{task.session_id}/messages/agent-task-status/{task.id}/"
