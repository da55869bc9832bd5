"""Messages of a session: `…/chats/{session_id}/messages/`. Sending one starts a turn."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import quote

from backendai.chat.v1 import chat_pb2 as pb
from fastapi import APIRouter, Body, Query, Response
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from gateway.answers import answer
from gateway.bodies import NOT_BLANK, Nothing, not_blank
from gateway.calls import Cursor, InWorkspace, Limit, MessageId, SessionId, WorkspaceCall
from gateway.outcomes import AcceptedOut, MessageOut, Turn, TurnOut, ended_badly, message_out, turn_out
from gateway.preferences import (
    Wait,
    fingerprint,
    idempotency_key_of,
    takes,
    wait_of,
)
from gateway.problems import problems
from gateway.routing import PrivateRoute
from gateway.sse import STREAMED, EventStream, wants_events
from gateway.streams import Client
from gateway.turns import Begin

router = APIRouter(
    prefix="/api/workspaces/{workspace_id}/chats/{session_id}/messages", tags=["messages"], route_class=PrivateRoute
)


Content = Annotated[
    str, Field(min_length=1, max_length=100_000, json_schema_extra=NOT_BLANK), AfterValidator(not_blank)
]


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


OUTCOMES: dict[int | str, dict[str, Any]] = {
    200: STREAMED,
    202: {"model": AcceptedOut, "description": "The run goes on; poll `Location`."},
    **problems(400, 401, 402, 403, 404, 409, 413, 415, 422, 502, 503, 504),
}


class MessagePage(TypedDict):
    """One page of messages."""

    next: str | None
    previous: str | None
    results: list[MessageOut]


async def conclude(call: WorkspaceCall, session_id: str, begin: Begin) -> Response:
    """Begin a turn and answer as its caller likes: with its events, with its end, or with where to poll it.

    One path with three endings: the run knows nothing of who waits.
    """

    if wants_events(call.request):
        follower, task = await call.parts.streams.begin(client_of(call, session_id), begin)
        return EventStream(follower, {"Location": _status_path(call, task)})
    settings = call.parts.settings
    wait = wait_of(call.request, is_async=settings.agent_async_enabled, limit_seconds=settings.agent_sync_timeout_s)
    turn = await call.parts.turns.run(begin, partial(read_task, call, session_id), wait_seconds=wait.seconds)
    call.parts.statuses.allow(call.caller, turn.task)
    return told(turn, wait, _status_path(call, turn.task))


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
    found = await listing.fetch(
        lambda: call.parts.chat.ListMessages(
            pb.ListMessagesRequest(
                caller=call.caller, session_id=session_id, descending=order == "desc", page=listing.page
            )
        )
    )
    return listing.answer([message_out(message) for message in found.messages], found.page)


@router.post(
    "/",
    status_code=201,
    operation_id="send_message",
    response_model=TurnOut,
    responses=OUTCOMES,
    openapi_extra=takes("Idempotency-Key", "Prefer"),
)
async def send_message(call: InWorkspace, session_id: SessionId, body: Annotated[MessageIn, Body()]) -> Response:
    """Send a message and get its answer, or a task to poll when that takes long or is preferred."""
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

    return await conclude(call, session_id, send)


@router.post(
    "/regenerate/",
    status_code=201,
    operation_id="regenerate_answer",
    response_model=TurnOut,
    responses=OUTCOMES,
    openapi_extra=takes("Idempotency-Key", "Prefer"),
)
async def regenerate_answer(
    call: InWorkspace, session_id: SessionId, body: Annotated[Nothing, Body(default_factory=dict)]
) -> Response:
    """Answer the last user message again, as a send does. The new answer replaces the old one once it is stored."""
    request = pb.RegenerateAnswerRequest(
        caller=call.caller,
        session_id=session_id,
        idempotency_key=idempotency_key_of(call.request),
        request_fingerprint=fingerprint(body),
    )

    async def regenerate(task_id: str) -> pb.RegenerateAnswerResponse:
        request.task_id = task_id
        return await call.parts.chat.RegenerateAnswer(request)

    return await conclude(call, session_id, regenerate)


@router.get("/{message_id}/", operation_id="get_message", response_model=MessageOut, responses=problems(401, 404))
async def get_message(call: InWorkspace, session_id: SessionId, message_id: MessageId) -> Response:
    """One message of the session."""
    found = await call.parts.chat.GetMessage(
        pb.GetMessageRequest(caller=call.caller, session_id=session_id, message_id=message_id)
    )
    return answer(message_out(found.message))


@router.delete(
    "/{message_id}/",
    status_code=204,
    operation_id="delete_message",
    response_class=Response,
    responses=problems(401, 403, 404, 409),
)
async def delete_message(call: InWorkspace, session_id: SessionId, message_id: MessageId) -> Response:
    """Delete an answer, or a user message with its turn; not while the session runs a task. Owner only."""
    await call.parts.chat.DeleteMessage(
        pb.DeleteMessageRequest(caller=call.caller, session_id=session_id, message_id=message_id)
    )
    return Response(status_code=204)


async def read_task(call: WorkspaceCall, session_id: str, task_id: str) -> pb.GetTaskResponse:
    """A task as chat has it."""
    return await call.parts.chat.GetTask(pb.GetTaskRequest(caller=call.caller, session_id=session_id, task_id=task_id))


def client_of(call: WorkspaceCall, session_id: str) -> Client:
    """The caller as one who follows tasks of a session."""
    show = partial(call.parts.statuses.allow, call.caller)
    return Client(partial(read_task, call, session_id), show, call.request.scope["request_id"])


def _status_path(call: WorkspaceCall, task: pb.Task) -> str:
    """Where a task is polled."""
    chats = f"{call.request.scope.get('root_path', '')}/api/workspaces/{call.caller.workspace_id}/chats"
    return f"{quote(chats)}/{task.session_id}/messages/agent-task-status/{task.id}/"
