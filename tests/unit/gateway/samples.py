"""Ids, tokens and protobuf messages with defaults."""

import time
from typing import Any

import jwt
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2
from google.protobuf.timestamp_pb2 import Timestamp

SECRET = "s" * 32
WORKSPACE = "0197a1b2-0000-7000-8000-000000000001"
OTHER_WORKSPACE = "0197a1b2-0000-7000-8000-000000000002"
SESSION = "0197a1b2-0000-7000-8000-000000000003"
MESSAGE = "0197a1b2-0000-7000-8000-000000000004"
ANSWER = "0197a1b2-0000-7000-8000-000000000005"
TASK = "0197a1b2-0000-7000-8000-000000000006"
NOON = Timestamp(seconds=1_767_268_800, nanos=123_456_000)  # 2026-01-01T12:00:00.123456Z
NOON_TEXT = "2026-01-01T12:00:00.123456Z"
NO_TEMPERATURE = chat_pb2.TaskWarning(code="parameter_dropped", detail="temperature")
NO_TEMPERATURE_OUT = {"code": "parameter_dropped", "detail": "temperature"}

CHATS = f"/api/workspaces/{WORKSPACE}/chats/"
CHAT = f"{CHATS}{SESSION}/"
MESSAGES = f"{CHAT}messages/"
STATUS = f"{MESSAGES}agent-task-status/{TASK}/"
CREDITS = f"/api/workspaces/{WORKSPACE}/credits/"
TRANSLATE = f"/api/workspaces/{WORKSPACE}/translate/"


def token(
    *, secret: str = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any
) -> str:
    """alice's, owner of the workspace; a claim that is None is left out."""
    now = int(time.time())
    default = {"sub": "alice", "iat": now, "exp": now + 14_400, "workspaces": {WORKSPACE: "owner"}}
    chosen = {name: value for name, value in (default | claims).items() if value is not None}
    return jwt.encode(chosen, secret, algorithm, headers=headers)


def a_session(**changes: Any) -> chat_pb2.Session:
    """An active session of alice's."""
    settings = changes.pop("settings", {})
    return chat_pb2.Session(
        **{
            "id": SESSION,
            "workspace_id": WORKSPACE,
            "user_id": "alice",
            "settings": chat_pb2.SessionSettings(
                **{
                    "status": chat_pb2.SESSION_STATUS_ACTIVE,
                    "ai_provider": "local",
                    "ai_model": "small",
                    "agent_framework": "langgraph",
                    **settings,
                }
            ),
            "my_permission": chat_pb2.PERMISSION_OWNER,
            "created_at": NOON,
            "updated_at": NOON,
            "version": 3,
            **changes,
        }
    )


def a_message(**changes: Any) -> chat_pb2.Message:
    """alice's question."""
    return chat_pb2.Message(
        **{
            "id": MESSAGE,
            "session_id": SESSION,
            "sequence_number": 1,
            "role": "user",
            "content": "What is the capital of France?",
            "user_id": "alice",
            "created_at": NOON,
            **changes,
        }
    )


def an_answer(**changes: Any) -> chat_pb2.Message:
    """The model's answer to it."""
    return chat_pb2.Message(
        **{
            "id": ANSWER,
            "session_id": SESSION,
            "parent_message_id": MESSAGE,
            "sequence_number": 2,
            "role": "assistant",
            "content": "Paris.",
            "ai_provider": "local",
            "ai_model": "small",
            "finish_reason": "stop",
            "usage": billing_pb2.Usage(input_tokens=12, output_tokens=3),
            "created_at": NOON,
            **changes,
        }
    )


def a_task(**changes: Any) -> chat_pb2.Task:
    """A task that runs."""
    return chat_pb2.Task(
        **{
            "id": TASK,
            "session_id": SESSION,
            "state": chat_pb2.TASK_STATE_PROCESSING,
            "attempt": 1,
            "created_at": NOON,
            "updated_at": NOON,
            "user_message_id": MESSAGE,
            "held_nano": 5_000_000,
            **changes,
        }
    )


def a_completed_task(**changes: Any) -> chat_pb2.Task:
    """A task that was answered, settled and charged."""
    return a_task(
        **{
            "state": chat_pb2.TASK_STATE_COMPLETED,
            "ai_messages": [an_answer()],
            "usage": billing_pb2.Usage(input_tokens=12, output_tokens=3),
            "held_nano": 0,
            "charged_nano": 1_500,
            **changes,
        }
    )


def a_failed_task(code: str = "provider_error", **changes: Any) -> chat_pb2.Task:
    """A task whose provider let it down."""
    return a_task(
        **{
            "state": chat_pb2.TASK_STATE_FAILED,
            "held_nano": 0,
            "error_code": code,
            "error_detail": "The provider answered with an error.",
            **changes,
        }
    )
