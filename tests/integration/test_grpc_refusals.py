"""What services refuse over gRPC they refuse as their protos say, and what the protos say can happen does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2
from backendai.common.v1 import common_pb2

from services.kit.grpc_errors import error_info
from tests.integration.grpc_scene import (
    PAGE,
    SERVICES,
    WIDE,
    Scene,
    again,
    create,
    grant,
    hold,
    keyed,
    new,
    of_session,
    opened,
    recording,
    send,
    step,
    translate,
    update,
)
from tests.integration.stack import Stack

LISTED = {
    (f"{service.name}.{method.name}", error.code, error.reason)
    for service in SERVICES.values()
    for method in service.methods
    for error in method.errors
}
# What is listed and takes an outage, a race, another configuration or a provider that fails: the services' own tests
# have these.
TRIED_ELSEWHERE = {
    "AUDIO_TOO_LARGE",
    "AUDIO_TOO_LONG",
    "AUDIO_TOO_SHORT",
    "AUDIO_UNDECODABLE",
    "CONTENT_FILTERED",
    "HOLD_RELEASED",
    "LANGUAGE_UNSUPPORTED",
    "PRICE_UNKNOWN",
    "PROVIDER_AUTH_FAILED",
    "PROVIDER_BAD_RESPONSE",
    "PROVIDER_NOT_CONFIGURED",
    "PROVIDER_RATE_LIMITED",
    "PROVIDER_REJECTED",
    "PROVIDER_TIMEOUT",
    "PROVIDER_UNAVAILABLE",
    "TOO_MANY_TRIES",
    "UNAVAILABLE",
}
TRIED_ELSEWHERE_OF = {
    ("ChatService.RegenerateAnswer", "CONTEXT_TOO_LONG"),  # no model of this stack has so small a window
    ("ChatService.RegenerateAnswer", "MODEL_UNKNOWN"),
    ("ChatService.SendMessage", "MODEL_UNKNOWN"),
    ("SpeechService.Transcribe", "CONTEXT_TOO_LONG"),
    ("SpeechService.Transcribe", "INSUFFICIENT_CREDITS"),
    ("TranslateService.TranslateText", "CONTEXT_TOO_LONG"),
}


def page_at(token: str) -> common_pb2.PageRequest:
    """A page after a token."""
    return common_pb2.PageRequest(limit=5, token=token)


Make = Callable[[Scene], Any]
NOT_FOUND, DENIED = ("NOT_FOUND", "NOT_FOUND"), ("PERMISSION_DENIED", "PERMISSION_DENIED")
WRONG_CURSOR = ("INVALID_ARGUMENT", "INVALID_CURSOR")
BUSY, ARCHIVED = ("ABORTED", "TASK_IN_PROGRESS"), ("FAILED_PRECONDITION", "SESSION_NOT_ACTIVE")
NO_CREDITS, STALE = ("FAILED_PRECONDITION", "INSUFFICIENT_CREDITS"), ("FAILED_PRECONDITION", "VERSION_MISMATCH")
NO_MODEL, NO_KEY = ("INVALID_ARGUMENT", "MODEL_UNKNOWN"), ("INVALID_ARGUMENT", "PROVIDER_NOT_CONFIGURED")
NO_FRAMEWORK, LOST = ("INVALID_ARGUMENT", "FRAMEWORK_NOT_AVAILABLE"), ("ABORTED", "LEASE_LOST")
NO_LANGUAGE, NO_PRICE = ("INVALID_ARGUMENT", "LANGUAGE_UNKNOWN"), ("INVALID_ARGUMENT", "PRICE_UNKNOWN")
REUSED = ("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_REUSED")
INVALID = ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


@pytest.fixture(scope="module")
def scene(stack: Stack) -> Iterator[Scene]:
    """A workspace where things have happened."""
    with opened(stack) as made:
        yield made


def called(document: str) -> chat_pb2.RecordStepRequest:
    """A step with tool calls."""
    message = chat_pb2.Message(role="assistant", tool_calls_json=document)
    return step(step=chat_pb2.Step(number=1, messages=[message]))


CASES: list[tuple[str, tuple[str, str], Make]] = [
    ("BillingService.GetCredits", NOT_FOUND, lambda s: billing_pb2.GetCreditsRequest(caller=s.guest)),
    ("BillingService.CheckCredits", NO_CREDITS, lambda _: billing_pb2.CheckCreditsRequest(workspace_id=new())),
    ("BillingService.HoldCredits", NO_PRICE, lambda s: hold(s, model="gpt-9")),
    ("BillingService.HoldCredits", NO_CREDITS, lambda s: hold(s, workspace_id=s.poor, max_output_tokens=16_384)),
    (
        "BillingService.HoldCredits",
        ("FAILED_PRECONDITION", "HOLD_RELEASED"),
        lambda s: hold(s, hold_id=s.released),
    ),
    ("BillingService.GrantCredits", NOT_FOUND, lambda s: grant(s.guest)),
    ("BillingService.GrantCredits", DENIED, lambda s: grant(s.bob)),
    ("BillingService.ListUsage", NOT_FOUND, lambda s: billing_pb2.ListUsageRequest(caller=s.guest, page=PAGE)),
    (
        "BillingService.ListUsage",
        WRONG_CURSOR,
        lambda s: billing_pb2.ListUsageRequest(caller=s.caller(), page=page_at("nowhere")),
    ),
    ("ChatService.CreateSession", NOT_FOUND, lambda s: create(s.guest)),
    ("ChatService.CreateSession", DENIED, lambda s: create(s.viewer)),
    ("ChatService.CreateSession", NO_CREDITS, lambda s: create(s.caller(workspace=new()))),
    ("ChatService.CreateSession", NO_MODEL, lambda s: create(s.caller(), ai_model="gpt-9")),
    ("ChatService.CreateSession", NO_KEY, lambda s: create(s.caller(), ai_provider="anthropic")),
    ("ChatService.CreateSession", NO_FRAMEWORK, lambda s: create(s.caller(), agent_framework="none such")),
    ("ChatService.GetSession", NOT_FOUND, lambda s: of_session(chat_pb2.GetSessionRequest, s, caller=s.guest)),
    ("ChatService.ListSessions", NOT_FOUND, lambda s: chat_pb2.ListSessionsRequest(caller=s.guest, page=PAGE)),
    (
        "ChatService.ListSessions",
        WRONG_CURSOR,
        lambda s: chat_pb2.ListSessionsRequest(caller=s.caller(), page=page_at("nowhere")),
    ),
    (
        "ChatService.ListSessions",
        WRONG_CURSOR,
        lambda s: chat_pb2.ListSessionsRequest(caller=s.caller(), page=page_at(f"after:².{new()}")),
    ),
    (
        "ChatService.ListSessions",
        WRONG_CURSOR,
        lambda s: chat_pb2.ListSessionsRequest(caller=s.caller(), search="x", page=page_at(f"after:1e999999_{new()}")),
    ),
    ("ChatService.UpdateSession", NOT_FOUND, lambda s: update(s, new(), name="x")),
    ("ChatService.UpdateSession", DENIED, lambda s: update(s, caller=s.bob, name="x")),
    ("ChatService.UpdateSession", STALE, lambda s: update(s, name="idle", if_version=99)),
    ("ChatService.UpdateSession", NO_MODEL, lambda s: update(s, ai_model="gpt-9")),
    ("ChatService.UpdateSession", NO_KEY, lambda s: update(s, ai_provider="anthropic", ai_model="x")),
    ("ChatService.UpdateSession", NO_FRAMEWORK, lambda s: update(s, agent_framework="none such")),
    ("ChatService.DeleteSession", NOT_FOUND, lambda s: of_session(chat_pb2.DeleteSessionRequest, s, new())),
    ("ChatService.DeleteSession", DENIED, lambda s: of_session(chat_pb2.DeleteSessionRequest, s, caller=s.bob)),
    ("ChatService.DeleteSession", STALE, lambda s: of_session(chat_pb2.DeleteSessionRequest, s, if_version=99)),
    ("ChatService.ListMessages", NOT_FOUND, lambda s: of_session(chat_pb2.ListMessagesRequest, s, new(), page=PAGE)),
    (
        "ChatService.ListMessages",
        WRONG_CURSOR,
        lambda s: of_session(chat_pb2.ListMessagesRequest, s, page=page_at("nowhere")),
    ),
    (
        "ChatService.ListMessages",
        WRONG_CURSOR,
        lambda s: of_session(chat_pb2.ListMessagesRequest, s, page=page_at("after:²")),
    ),
    ("ChatService.GetMessage", NOT_FOUND, lambda s: of_session(chat_pb2.GetMessageRequest, s, message_id=new())),
    ("ChatService.SendMessage", NOT_FOUND, lambda s: send(s, new())),
    ("ChatService.SendMessage", DENIED, lambda s: send(s, caller=s.bob)),
    ("ChatService.SendMessage", BUSY, lambda s: send(s, "busy")),
    ("ChatService.SendMessage", ARCHIVED, lambda s: send(s, "archived")),
    ("ChatService.SendMessage", NO_CREDITS, lambda s: send(s, "poor", caller=s.caller(workspace=s.poor))),
    (
        "ChatService.SendMessage",
        ("INVALID_ARGUMENT", "CONTEXT_TOO_LONG"),
        lambda s: send(s, "long", content=WIDE * 100_000),
    ),
    ("ChatService.RegenerateAnswer", NOT_FOUND, lambda s: again(s, new())),
    ("ChatService.RegenerateAnswer", DENIED, lambda s: again(s, "answered", caller=s.bob)),
    ("ChatService.RegenerateAnswer", BUSY, lambda s: again(s, "busy")),
    ("ChatService.RegenerateAnswer", ARCHIVED, lambda s: again(s, "archived")),
    ("ChatService.RegenerateAnswer", NO_CREDITS, lambda s: again(s, "poor", caller=s.caller(workspace=s.poor))),
    ("ChatService.RegenerateAnswer", ("FAILED_PRECONDITION", "NOTHING_TO_REGENERATE"), again),
    ("ChatService.DeleteMessage", NOT_FOUND, lambda s: of_session(chat_pb2.DeleteMessageRequest, s, message_id=new())),
    (
        "ChatService.DeleteMessage",
        DENIED,
        lambda s: of_session(chat_pb2.DeleteMessageRequest, s, "answered", caller=s.bob, message_id=s.message),
    ),
    (
        "ChatService.DeleteMessage",
        BUSY,
        lambda s: of_session(chat_pb2.DeleteMessageRequest, s, "busy", message_id=_first(s)),
    ),
    ("ChatService.TogglePublic", NOT_FOUND, lambda s: of_session(chat_pb2.TogglePublicRequest, s, new())),
    ("ChatService.TogglePublic", DENIED, lambda s: of_session(chat_pb2.TogglePublicRequest, s, caller=s.bob)),
    ("ChatService.ShareSession", NOT_FOUND, lambda s: of_session(chat_pb2.ShareSessionRequest, s, new(), user_id="x")),
    (
        "ChatService.ShareSession",
        DENIED,
        lambda s: of_session(chat_pb2.ShareSessionRequest, s, caller=s.bob, user_id="x"),
    ),
    (
        "ChatService.ShareSession",
        ("INVALID_ARGUMENT", "SHARE_WITH_OWNER"),
        lambda s: of_session(chat_pb2.ShareSessionRequest, s, user_id="alice"),
    ),
    ("ChatService.ListShares", NOT_FOUND, lambda s: of_session(chat_pb2.ListSharesRequest, s, new(), page=PAGE)),
    ("ChatService.ListShares", DENIED, lambda s: of_session(chat_pb2.ListSharesRequest, s, caller=s.bob, page=PAGE)),
    (
        "ChatService.ListShares",
        WRONG_CURSOR,
        lambda s: of_session(chat_pb2.ListSharesRequest, s, page=page_at("nowhere")),
    ),
    (
        "ChatService.ListShares",
        WRONG_CURSOR,
        lambda s: of_session(chat_pb2.ListSharesRequest, s, page=page_at("after:\0")),
    ),
    ("ChatService.RevokeShare", NOT_FOUND, lambda s: of_session(chat_pb2.RevokeShareRequest, s, user_id="nobody")),
    (
        "ChatService.RevokeShare",
        DENIED,
        lambda s: of_session(chat_pb2.RevokeShareRequest, s, caller=s.bob, user_id="bob"),
    ),
    ("ChatService.GetPublicSession", NOT_FOUND, lambda _: chat_pb2.GetPublicSessionRequest(shareable_link_id=new())),
    ("ChatService.GetTask", NOT_FOUND, lambda s: of_session(chat_pb2.GetTaskRequest, s, task_id=new())),
    ("ChatService.CancelTask", NOT_FOUND, lambda s: of_session(chat_pb2.CancelTaskRequest, s, task_id=new())),
    (
        "ChatService.CancelTask",
        DENIED,
        lambda s: of_session(chat_pb2.CancelTaskRequest, s, "busy", caller=s.bob, task_id=_busy(s)),
    ),
    (
        "ChatService.BindIdempotencyKey",
        NOT_FOUND,
        lambda s: chat_pb2.BindIdempotencyKeyRequest(caller=s.caller(), route="r", idempotency_key="k"),
    ),
    (
        "TaskService.HeartbeatTasks",
        NOT_FOUND,
        lambda _: chat_pb2.HeartbeatTasksRequest(heartbeats=[chat_pb2.Heartbeat(task_id="none")]),
    ),
    ("TaskService.RecordStep", NOT_FOUND, lambda _: step(task_id="none")),
    ("TaskService.RecordStep", LOST, lambda _: step()),
    ("TaskService.CompleteTask", NOT_FOUND, lambda _: chat_pb2.CompleteTaskRequest(task_id="none")),
    ("TaskService.CompleteTask", LOST, lambda _: chat_pb2.CompleteTaskRequest(task_id=new(), attempt=1)),
    ("TaskService.FailTask", NOT_FOUND, lambda _: chat_pb2.FailTaskRequest(task_id="none")),
    ("TaskService.FailTask", LOST, lambda _: chat_pb2.FailTaskRequest(task_id=new(), attempt=1)),
    ("TranslateService.TranslateText", NOT_FOUND, lambda s: translate(s.guest)),
    ("TranslateService.TranslateText", DENIED, lambda s: translate(s.viewer)),
    ("TranslateService.TranslateText", NO_LANGUAGE, lambda s: translate(s.caller(), target="xx-nope")),
    ("TranslateService.TranslateText", NO_CREDITS, lambda s: translate(s.caller(workspace=new()))),
    ("SpeechService.Transcribe", NOT_FOUND, lambda s: recording(s.guest)),
    ("SpeechService.Transcribe", DENIED, lambda s: recording(s.viewer)),
    ("SpeechService.Transcribe", NO_LANGUAGE, lambda s: recording(s.caller(), language="xx")),
    ("SpeechService.Transcribe", ("INVALID_ARGUMENT", "AUDIO_EMPTY"), lambda s: recording(s.caller())),
    (
        "SpeechService.Transcribe",
        ("INVALID_ARGUMENT", "AUDIO_TYPE_UNSUPPORTED"),
        lambda s: recording(s.caller(), b"This is text."),
    ),
]
# Fields that are not as their comments say, each by its name.
MALFORMED: list[tuple[str, str, Make]] = [
    ("BillingService.GetCreditUsage", "user_id", lambda _: billing_pb2.GetCreditUsageRequest(user_id="a\0")),
    ("BillingService.GrantCredits", "reason", lambda s: grant(s.caller(), reason="a\0")),
    ("BillingService.HoldCredits", "model", lambda s: hold(s, model=WIDE * 256)),
    ("BillingService.HoldCredits", "provider", lambda s: hold(s, provider="\0")),
    (
        "ChatService.BindIdempotencyKey",
        "route",
        lambda s: chat_pb2.BindIdempotencyKeyRequest(caller=s.caller(), route="r\0", idempotency_key="k"),
    ),
    (
        "ChatService.CreateSession",
        "model_parameters",
        lambda s: create(s.caller(), model_parameters={"a": [{"b": math.nan}]}),
    ),
    (
        "ChatService.CreateSession",
        "model_parameters",
        lambda s: create(s.caller(), model_parameters={"a": "x" * 128 * 1024}),
    ),
    ("ChatService.CreateSession", "agent_framework", lambda s: create(s.caller(), agent_framework=WIDE * 101)),
    ("ChatService.RevokeShare", "user_id", lambda s: of_session(chat_pb2.RevokeShareRequest, s, user_id="a\0")),
    ("ChatService.SendMessage", "content", lambda s: send(s, content=" ")),
    ("ChatService.UpdateSession", "model_parameters", lambda s: update(s, model_parameters={"a": -math.inf})),
    ("ChatService.UpdateSession", "ai_provider", lambda s: update(s, ai_provider=WIDE * 101)),
    ("TaskService.RecordStep", "step.messages.tool_calls_json", lambda _: called("{")),
    ("TranslateService.TranslateText", "text", lambda s: translate(s.caller(), text=" ")),
]
KEYED = [
    "ChatService.CreateSession",
    "ChatService.SendMessage",
    "ChatService.RegenerateAnswer",
    "ChatService.TogglePublic",
    "ChatService.ShareSession",
    "ChatService.BindIdempotencyKey",
    "BillingService.GrantCredits",
]


def _busy(scene: Scene) -> str:
    """The task that keeps the busy session."""
    found = scene.call("ChatService.GetSession", of_session(chat_pb2.GetSessionRequest, scene, "busy"))
    return str(found.session.active_task_id)


def _first(scene: Scene) -> str:
    """The first message of the busy session."""
    found = scene.call("ChatService.ListMessages", of_session(chat_pb2.ListMessagesRequest, scene, "busy", page=PAGE))
    return str(found.messages[0].id)


def failure(scene: Scene, method: str, request: Any) -> tuple[str, str, str]:
    """Code and reason that a call fails with, and the field that is to blame."""
    with pytest.raises(grpc.RpcError) as failed:
        scene.call(method, request)
    error: Any = failed.value
    info = error_info(error)
    return (error.code().name, info.reason, info.metadata.get("field", "")) if info else (error.code().name, "", "")


def refusal(scene: Scene, method: str, request: Any) -> tuple[str, str]:
    """Code and reason that a call fails with."""
    return failure(scene, method, request)[:2]


@pytest.mark.parametrize(
    ("method", "expected", "make"), CASES, ids=[f"{method}-{reason}" for method, (_, reason), _ in CASES]
)
def test_what_is_refused_is_refused_as_listed(scene: Scene, method: str, expected: tuple[str, str], make: Make) -> None:
    assert refusal(scene, method, make(scene)) == expected
    assert (method, *expected) in LISTED


@pytest.mark.parametrize("method", KEYED)
def test_a_key_that_comes_again_with_another_request_is_refused_as_listed(scene: Scene, method: str) -> None:
    request = dict(keyed(scene, b"another"))[method]
    assert refusal(scene, method, request) == REUSED
    assert (method, *REUSED) in LISTED


@pytest.mark.parametrize("method", KEYED)
def test_what_is_no_key_is_refused_by_its_name(scene: Scene, method: str) -> None:
    for key in ("k\0", "k" * 256):
        request = dict(keyed(scene, b"first"))[method]
        request.idempotency_key = key
        assert failure(scene, method, request) == (*INVALID, "idempotency_key")


@pytest.mark.parametrize(("method", "field", "make"), MALFORMED, ids=[f"{one[0]}-{one[1]}" for one in MALFORMED])
def test_a_field_that_is_not_as_its_comment_says_is_refused_by_its_name(
    scene: Scene, method: str, field: str, make: Make
) -> None:
    assert failure(scene, method, make(scene)) == (*INVALID, field)


@pytest.mark.parametrize("method", [method for method in KEYED if method.startswith("ChatService")])
def test_a_key_that_comes_again_with_the_same_request_is_answered(scene: Scene, method: str) -> None:
    scene.call(method, dict(keyed(scene, b"first"))[method])


def test_all_that_is_listed_is_tried_here_or_by_the_services_own_tests() -> None:
    tried = {(method, *expected) for method, expected, _ in CASES} | {(method, *REUSED) for method in KEYED}
    untried = {
        (method, reason)
        for method, code, reason in LISTED
        if (method, code, reason) not in tried and reason not in TRIED_ELSEWHERE
    }
    assert untried == TRIED_ELSEWHERE_OF
