"""Messages, turns and tasks as JSON: what a send answers, a poll shows and a stream tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import orjson
from backendai.chat.v1 import chat_pb2 as pb
from typing_extensions import TypedDict

from gateway.answers import Credits, Id, Moment, TokensOut, moment, tokens_out
from gateway.problems import Problem
from services.kit.money import to_credits

TaskStatus = Literal["processing", "completed", "failed", "cancelled"]
Speaker = Literal["user", "assistant", "tool"]

STATUS_OF: dict[int, TaskStatus] = {
    pb.TASK_STATE_PROCESSING: "processing",
    pb.TASK_STATE_COMPLETED: "completed",
    pb.TASK_STATE_FAILED: "failed",
    pb.TASK_STATE_CANCELLED: "cancelled",
}
ANSWERED = (pb.TASK_STATE_COMPLETED, pb.TASK_STATE_CANCELLED)


class MessageOut(TypedDict):
    """A stored message."""

    id: Id
    session_id: Id
    parent_message_id: Id | None
    sequence_number: int
    role: Speaker
    content: str
    tool_calls: list[dict[str, Any]] | None
    tool_call_id: str | None
    user_id: str | None
    ai_provider: str | None
    ai_model: str | None
    finish_reason: str | None
    usage: TokensOut | None
    created_at: Moment


class TaskWarningOut(TypedDict):
    """What a run had to do without; `parameter_dropped` names a parameter that the provider was not sent."""

    code: str
    detail: str


class TurnOut(TypedDict):
    """A turn that was answered."""

    task_id: Id
    user_message: MessageOut | None
    ai_messages: list[MessageOut]
    usage: TokensOut | None
    credits_charged: Credits
    warnings: list[TaskWarningOut]


class AcceptedOut(TypedDict):
    """A turn that still runs; `Location` is the path to poll."""

    task_id: Id
    status: Literal["processing"]


class CreditsOut(TypedDict):
    """What a task holds and has cost, in credits."""

    held: Credits
    charged: Credits


class TaskErrorOut(TypedDict):
    """Why a task failed."""

    code: str
    detail: str


class TaskOut(TypedDict):
    """A task; `processing` is everything before its end."""

    task_id: Id
    status: TaskStatus
    attempt: int
    created_at: Moment
    updated_at: Moment
    user_message_id: Id | None
    ai_messages: list[MessageOut] | None
    usage: TokensOut | None
    credits: CreditsOut
    warnings: list[TaskWarningOut]
    error: TaskErrorOut | None


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn in the state in which its caller gets it; its message is empty when it was deleted since."""

    task: pb.Task
    user_message: pb.Message


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
        "warnings": _warnings_out(task),
    }


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
        "warnings": _warnings_out(task),
        "error": {"code": task.error_code, "detail": task.error_detail} if task.error_code else None,
    }


def _warnings_out(task: pb.Task) -> list[TaskWarningOut]:
    return [{"code": warning.code, "detail": warning.detail} for warning in task.warnings]


def ended_badly(task: pb.Task) -> Problem:
    """What a caller that waited is told of a run that brought no answer."""
    if task.state == pb.TASK_STATE_CANCELLED:
        return Problem(
            409, "task_cancelled", "The run was cancelled; its task tells what was written.", task_id=task.id
        )
    status = 504 if task.error_code == "provider_timeout" else 502
    return Problem(status, task.error_code or "task_failed", task.error_detail or "The run failed.", task_id=task.id)
