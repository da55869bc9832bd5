"""Tasks: `…/messages/agent-task-status/{task_id}/`, polled and cancelled."""

from __future__ import annotations

from typing import Any

from backendai.chat.v1 import chat_pb2 as pb
from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from gateway.answers import TokensOut, answer, moment, tokens_out
from gateway.calls import InWorkspace, SessionId, TaskId
from gateway.problems import problems
from gateway.routes.messages import MessageOut, message_out, read_task
from gateway.routing import PrivateRoute
from services.kit.money import to_credits

router = APIRouter(
    prefix="/api/workspaces/{workspace_id}/chats/{session_id}/messages/agent-task-status",
    tags=["tasks"],
    route_class=PrivateRoute,
)

# Longer than other calls: a run is given its time to stop, and its charge to be settled.
CANCEL_SECONDS = 10.0
STATUS_OF: dict[int, str] = {
    pb.TASK_STATE_PROCESSING: "processing",
    pb.TASK_STATE_COMPLETED: "completed",
    pb.TASK_STATE_FAILED: "failed",
    pb.TASK_STATE_CANCELLED: "cancelled",
}
ANSWERED = (pb.TASK_STATE_COMPLETED, pb.TASK_STATE_CANCELLED)


class CreditsOut(TypedDict):
    """What a task holds and has cost, in credits."""

    held: str
    charged: str


class TaskErrorOut(TypedDict):
    """Why a task failed."""

    code: str
    detail: str


class TaskOut(TypedDict):
    """A task; `processing` is everything before its end."""

    task_id: str
    status: str
    attempt: int
    created_at: str
    updated_at: str
    user_message_id: str | None
    ai_messages: list[MessageOut] | None
    usage: TokensOut | None
    credits: CreditsOut
    error: TaskErrorOut | None


def task_out(task: pb.Task) -> dict[str, Any]:
    """A task as JSON, in TaskOut's shape."""
    return {
        "task_id": task.id,
        "status": STATUS_OF[task.state],
        "attempt": task.attempt,
        "created_at": moment(task.created_at),
        "updated_at": moment(task.updated_at),
        "user_message_id": task.user_message_id or None,
        "ai_messages": [message_out(message) for message in task.ai_messages] if task.state in ANSWERED else None,
        "usage": tokens_out(task.usage) if task.HasField("usage") else None,
        "credits": {"held": to_credits(task.held_nano), "charged": to_credits(task.charged_nano)},
        "error": {"code": task.error_code, "detail": task.error_detail} if task.error_code else None,
    }


@router.get("/{task_id}/", operation_id="get_task", response_model=TaskOut, responses=problems(401, 404))
async def get_task(call: InWorkspace, session_id: SessionId, task_id: TaskId) -> Response:
    """Poll a task."""
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
