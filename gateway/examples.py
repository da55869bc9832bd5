"""What answers look like, for the OpenAPI document: one of each, all of the same conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORKSPACE = "0197a1b2-0000-7000-8000-000000000001"
SESSION = "0197a1b2-3c4d-7000-8000-000000000002"
QUESTION = "0197a1b2-3c4d-7000-8000-000000000003"
ANSWER = "0197a1b2-3c4d-7000-8000-000000000004"
TASK = "0197a1b2-3c4d-7000-8000-000000000005"
ENTRY = "0197a1b2-3c4d-7000-8000-000000000006"
LINK = "7c0f6d3e-54a1-4b53-9df7-0a3f6d1c2b4e"
ASKED_AT, ANSWERED_AT = "2026-01-31T12:00:00.000000Z", "2026-01-31T12:00:01.250000Z"
USAGE = {"input_tokens": 14, "output_tokens": 8}
CHARGE = "0.0000069"

SESSION_OUT: dict[str, Any] = {
    "id": SESSION,
    "workspace_id": WORKSPACE,
    "user_id": "alice",
    "name": "Capitals",
    "status": "active",
    "ai_provider": "openai",
    "ai_model": "gpt-4o-mini",
    "system_prompt": "You are a helpful research assistant.",
    "temperature": 0.7,
    "max_tokens": None,
    "top_p": None,
    "frequency_penalty": None,
    "presence_penalty": None,
    "model_parameters": {},
    "agent_framework": "langgraph",
    "is_shared": True,
    "is_public": True,
    "shareable_link_id": LINK,
    "my_permission": "owner",
    "active_task_id": None,
    "message_count": 2,
    "created_at": ASKED_AT,
    "updated_at": ANSWERED_AT,
}
QUESTION_OUT: dict[str, Any] = {
    "id": QUESTION,
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
    "created_at": ASKED_AT,
}
ANSWER_OUT: dict[str, Any] = {
    **QUESTION_OUT,
    "id": ANSWER,
    "parent_message_id": QUESTION,
    "sequence_number": 2,
    "role": "assistant",
    "content": "The capital of France is Paris.",
    "user_id": None,
    "ai_provider": "openai",
    "ai_model": "gpt-4o-mini",
    "finish_reason": "stop",
    "usage": USAGE,
    "created_at": ANSWERED_AT,
}
ENTRY_OUT: dict[str, Any] = {
    "id": ENTRY,
    "kind": "chat",
    "task_id": TASK,
    "session_id": SESSION,
    "user_id": "alice",
    "provider": "openai",
    "model": "gpt-4o-mini",
    **USAGE,
    "seconds": None,
    "amount": f"-{CHARGE}",
    "created_at": ANSWERED_AT,
}
# By the name of the schema.
EXAMPLES: Mapping[str, dict[str, Any]] = {
    "SessionOut": SESSION_OUT,
    "MessageOut": ANSWER_OUT,
    "TurnOut": {
        "task_id": TASK,
        "user_message": QUESTION_OUT,
        "ai_messages": [ANSWER_OUT],
        "usage": USAGE,
        "credits_charged": CHARGE,
        "warnings": [],
    },
    "AcceptedOut": {"task_id": TASK, "status": "processing"},
    "TaskOut": {
        "task_id": TASK,
        "status": "completed",
        "attempt": 1,
        "created_at": ASKED_AT,
        "updated_at": ANSWERED_AT,
        "user_message_id": QUESTION,
        "ai_messages": [ANSWER_OUT],
        "usage": USAGE,
        "credits": {"held": "0", "charged": CHARGE},
        "warnings": [],
        "error": None,
    },
    "TaskWarningOut": {"code": "parameter_dropped", "detail": "temperature"},
    "ShareOut": {"user_id": "bob", "permission": "write", "created_at": ANSWERED_AT},
    "PublicSessionOut": {
        "name": "Capitals",
        "created_at": ASKED_AT,
        "messages": [
            {"role": "user", "content": QUESTION_OUT["content"], "created_at": ASKED_AT},
            {"role": "assistant", "content": ANSWER_OUT["content"], "created_at": ANSWERED_AT},
        ],
    },
    "BalanceOut": {"balance": "10", "held": "0.01", "available": "9.99"},
    "EntryOut": ENTRY_OUT,
    "GrantOut": {
        **dict.fromkeys(ENTRY_OUT),
        "id": ENTRY,
        "kind": "grant",
        "user_id": "alice",
        "amount": "25",
        "created_at": ASKED_AT,
        "reason": "Pilot",
    },
    "CreditUsageOut": {"total_credit_limit": "39.99", "total_cost": "12.45", "percentage_used": 31.1},
    "TranslationOut": {
        "text": "Good morning",
        "translated_text": "Bonjour",
        "source": "en",
        "target": "fr",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "credits_charged": CHARGE,
    },
    "TranscriptOut": {
        "text": "Good morning.",
        "language": "en",
        "duration_seconds": 1.4,
        "credits_charged": "0.00014",
    },
}
