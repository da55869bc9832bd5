"""Rows to domain values."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import RowMapping

from services.chat.domain import (
    OUT_OF_CREDITS,
    HistoryMessage,
    Hold,
    Message,
    MessageId,
    Permission,
    Session,
    SessionId,
    SessionSettings,
    SessionStatus,
    Step,
    Task,
    TaskId,
    TaskState,
    TaskWarning,
    Usage,
)
from services.kit.money import Tier

Fields: TypeAlias = Mapping[str, Any] | RowMapping
"""A row by its columns' names, from the driver or from the engine."""


def to_session(row: Fields) -> Session:
    """Of a row of SESSION_COLUMNS and the caller's permission."""
    return Session(
        id=SessionId(row["id"]),
        workspace_id=row["workspace_id"],
        user_id=row["user_id"],
        settings=SessionSettings(
            name=row["name"],
            status=SessionStatus(row["status"]),
            ai_provider=row["ai_provider"],
            ai_model=row["ai_model"],
            system_prompt=row["system_prompt"],
            temperature=row["temperature"],
            max_tokens=row["max_tokens"],
            top_p=row["top_p"],
            frequency_penalty=row["frequency_penalty"],
            presence_penalty=row["presence_penalty"],
            model_parameters=row["model_parameters"],
            agent_framework=row["agent_framework"],
        ),
        is_shared=row["is_shared"],
        shareable_link_id=row["shareable_link_id"],
        permission=Permission(row["permission"]),
        active_task_id=row["active_task_id"],
        message_count=row["message_count"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        version=row["version"],
    )


def to_message(row: Fields) -> Message:
    """Of a row of the messages table."""
    answered = row["input_tokens"] is not None
    return Message(
        id=MessageId(row["id"]),
        session_id=SessionId(row["session_id"]),
        parent_message_id=row["parent_message_id"],
        sequence_number=row["sequence_number"],
        role=row["role"],
        content=row["content"],
        tool_calls=row["tool_calls"],
        tool_call_id=row["tool_call_id"],
        user_id=row["user_id"],
        ai_provider=row["ai_provider"],
        ai_model=row["ai_model"],
        finish_reason=row["finish_reason"],
        usage=Usage(row["input_tokens"], row["output_tokens"]) if answered else None,
        created_at=row["created_at"],
    )


def to_task(row: Fields, ai_messages: Sequence[Message] = ()) -> Task:
    """Of a row of the tasks table."""
    state = TaskState(row["state"])
    paid = state in (TaskState.COMPLETED, TaskState.CANCELLED) or row["error_code"] == OUT_OF_CREDITS
    return Task(
        id=TaskId(row["id"]),
        session_id=SessionId(row["session_id"]),
        state=state,
        attempt=row["attempt"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        user_message_id=row["user_message_id"],
        usage=Usage(row["input_tokens"], row["output_tokens"], row["estimated"]) if paid else None,
        held_nano=row["held_nano"],
        charged_nano=row["charged_nano"],
        error_code=row["error_code"],
        error_detail=row["error_detail"],
        settled=row["settled_at"] is not None,
        ai_messages=ai_messages,
        warnings=[TaskWarning(warning["code"], warning["detail"]) for warning in row["warnings"]],
    )


def to_settings(document: Mapping[str, Any]) -> SessionSettings:
    """Of a task's snapshot, the session's row as JSON."""
    return SessionSettings(
        **{name: document[name] for name in SessionSettings.__dataclass_fields__ if name in document}
    )


def to_hold(row: Fields) -> Hold:
    """Of a task's row."""
    return Hold(row["held_nano"], [Tier(*tier) for tier in row["tiers"] or ()], row["output_tokens_held"])


def to_steps(documents: Sequence[Mapping[str, Any]]) -> Sequence[Step]:
    """Of a task's kept steps."""
    return [
        Step(
            number=document["number"],
            messages=[
                HistoryMessage(m["role"], m["content"], m.get("tool_calls"), m.get("tool_call_id"))
                for m in document["messages"]
            ],
            usage=Usage(**document["usage"]),
        )
        for document in documents
    ]
