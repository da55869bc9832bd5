"""Tasks: `…/messages/agent-task-status/{task_id}/`, polled and cancelled."""

from __future__ import annotations

from backendai.chat.v1 import chat_pb2 as pb
from fastapi import APIRouter, Response

from gateway.answers import answer
from gateway.calls import InWorkspace, SessionId, TaskId
from gateway.outcomes import TaskOut, task_out
from gateway.preferences import takes
from gateway.problems import problems
from gateway.routes.messages import client_of, read_task
from gateway.routing import PrivateRoute
from gateway.sse import STREAMED, EventStream, last_event_id, wants_events

router = APIRouter(
    prefix="/api/workspaces/{workspace_id}/chats/{session_id}/messages/agent-task-status",
    tags=["tasks"],
    route_class=PrivateRoute,
)

# Longer than other calls: a run is given its time to stop, and its charge to be settled.
CANCEL_SECONDS = 10.0


@router.get(
    "/{task_id}/",
    operation_id="get_task",
    response_model=TaskOut,
    responses={200: {"content": STREAMED["content"]}, **problems(401, 404)},
    openapi_extra=takes("Last-Event-ID"),
)
async def get_task(call: InWorkspace, session_id: SessionId, task_id: TaskId) -> Response:
    """Poll a task, or follow it as it runs: with `Accept: text/event-stream`, from `Last-Event-ID` on."""
    if wants_events(call.request):
        client = client_of(call, session_id)
        return EventStream(await call.parts.streams.follow(client, task_id, last_event_id(call.request)))
    statuses = call.parts.statuses
    task = await statuses.find(call.caller, session_id, task_id)
    if task is None:
        task = (await read_task(call, session_id, task_id)).task
        statuses.allow(call.caller, task)
    return answer(task_out(task))


@router.delete("/{task_id}/", operation_id="cancel_task", response_model=TaskOut, responses=problems(401, 403, 404))
async def cancel_task(call: InWorkspace, session_id: SessionId, task_id: TaskId) -> Response:
    """Cancel a task. Answers with its final state, also when it had ended before; what was used is charged."""
    cancelled = await call.parts.chat.CancelTask(
        pb.CancelTaskRequest(caller=call.caller, session_id=session_id, task_id=task_id), timeout=CANCEL_SECONDS
    )
    call.parts.statuses.allow(call.caller, cancelled.task)
    return answer(task_out(cancelled.task))
