"""What services refuse over gRPC they refuse as their protos say, and what the protos say can happen does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import grpc
import pytest
from backendai.billing.v1 import billing_pb2, billing_pb2_grpc
from backendai.chat.v1 import chat_pb2, chat_pb2_grpc
from backendai.common.v1 import common_pb2
from backendai.speech.v1 import speech_pb2, speech_pb2_grpc
from backendai.translate.v1 import translate_pb2, translate_pb2_grpc

from docs.contracts import read
from services.kit.grpc_errors import error_info
from services.kit.tls import Tls
from tests.integration.stack import Stack

DEADLINE_SECONDS = 15.0
START_SECONDS = 30.0
SERVICES = {service.name: service for file in read() for service in file.services}
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
    ("SpeechService.Transcribe", "INSUFFICIENT_CREDITS"),
}
PAGE = common_pb2.PageRequest(limit=5)
WRONG_TOKEN = common_pb2.PageRequest(limit=5, token="nowhere")
# A character of four bytes, which is counted as a token.
WIDE = "𝄞"


def new() -> str:
    """A UUID that nobody knows."""
    return str(uuid4())


@dataclass
class Scene:
    """The services, and a workspace where things have happened."""

    stubs: dict[str, Any]
    workspace: str = field(default_factory=new)
    poor: str = field(default_factory=new)
    sessions: dict[str, str] = field(default_factory=dict)
    message: str = ""
    released: str = field(default_factory=new)

    def caller(self, name: str = "alice", role: int = common_pb2.ROLE_OWNER, workspace: str = "") -> common_pb2.Caller:
        """Somebody in the workspace: alice owns it and its sessions, and shares them with bob, who may read."""
        return common_pb2.Caller(
            user_id=name, workspace_id=workspace or self.workspace, role=cast("common_pb2.Role.ValueType", role)
        )

    @property
    def bob(self) -> common_pb2.Caller:
        """A member to whom the sessions are shared."""
        return self.caller("bob", common_pb2.ROLE_MEMBER)

    @property
    def viewer(self) -> common_pb2.Caller:
        """A viewer."""
        return self.caller("vera", common_pb2.ROLE_VIEWER)

    @property
    def guest(self) -> common_pb2.Caller:
        """No member."""
        return self.caller("gus", common_pb2.ROLE_UNSPECIFIED)

    def call(self, method: str, request: Any) -> Any:
        """Call `Service.Method`; a list of requests is a stream."""
        service, _, name = method.partition(".")
        sent = iter(request) if isinstance(request, list) else request
        return getattr(self.stubs[service], name)(sent, timeout=DEADLINE_SECONDS)

    def open(self, name: str, workspace: str = "", **settings: Any) -> None:
        """Open a session of alice's."""
        chosen = chat_pb2.SessionSettings(**settings)
        request = chat_pb2.CreateSessionRequest(caller=self.caller(workspace=workspace), settings=chosen)
        self.sessions[name] = self.call("ChatService.CreateSession", request).session.id

    def update(self, name: str, workspace: str = "", **settings: Any) -> None:
        """Change a session's settings."""
        self.call("ChatService.UpdateSession", update(self, name, workspace=workspace, **settings))

    def answered(self, name: str, workspace: str = "") -> str:
        """Send to a session and wait for the answer; the id of the message."""
        sent = self.call("ChatService.SendMessage", send(self, name, caller=self.caller(workspace=workspace)))
        asked = chat_pb2.GetTaskRequest(
            caller=self.caller(workspace=workspace), session_id=self.sessions[name], task_id=sent.task.id
        )
        give_up_at = time.monotonic() + DEADLINE_SECONDS
        while self.call("ChatService.GetTask", asked).task.state == chat_pb2.TASK_STATE_PROCESSING:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        return str(sent.user_message.id)


def update(scene: Scene, name: str = "idle", /, *, workspace: str = "", **fields: Any) -> chat_pb2.UpdateSessionRequest:
    """A change of a session's settings, by alice unless told."""
    caller = fields.pop("caller", None) or scene.caller(workspace=workspace)
    version = fields.pop("if_version", 0)
    request = chat_pb2.UpdateSessionRequest(
        caller=caller,
        session_id=scene.sessions.get(name, name),
        settings=chat_pb2.SessionSettings(**fields),
        if_version=version,
    )
    request.update_mask.paths.extend(fields)
    return request


def send(scene: Scene, name: str = "idle", /, **fields: Any) -> chat_pb2.SendMessageRequest:
    """A message to a session, from alice unless told."""
    told = {"caller": scene.caller(), "task_id": new(), "content": "Hello?", **fields}
    return chat_pb2.SendMessageRequest(session_id=scene.sessions.get(name, name), **told)


def again(scene: Scene, name: str = "idle", /, **fields: Any) -> chat_pb2.RegenerateAnswerRequest:
    """The last message of a session once more, asked by alice unless told."""
    told = {"caller": scene.caller(), "task_id": new(), **fields}
    return chat_pb2.RegenerateAnswerRequest(session_id=scene.sessions.get(name, name), **told)


def of_session(request: Any, scene: Scene, name: str = "idle", /, **fields: Any) -> Any:
    """Any request that names a session, by alice unless told."""
    return request(**{"caller": scene.caller(), "session_id": scene.sessions.get(name, name), **fields})


def hold(scene: Scene, **fields: Any) -> billing_pb2.HoldCreditsRequest:
    """A hold for a turn."""
    told = {
        "hold_id": new(),
        "workspace_id": scene.workspace,
        "user_id": "alice",
        "kind": billing_pb2.CHARGE_KIND_CHAT,
        "provider": "openai",
        "model": "gpt-4o-mini",
        "input_tokens": 10,
        **fields,
    }
    return billing_pb2.HoldCreditsRequest(**told)


def grant(caller: common_pb2.Caller, **fields: Any) -> billing_pb2.GrantCreditsRequest:
    """A grant."""
    return billing_pb2.GrantCreditsRequest(caller=caller, **{"amount_nano": 1, **fields})


def translate(caller: common_pb2.Caller, **fields: Any) -> translate_pb2.TranslateTextRequest:
    """A text to translate."""
    return translate_pb2.TranslateTextRequest(caller=caller, **{"text": "Hello", "target": "de", **fields})


def recording(caller: common_pb2.Caller, *pieces: bytes, language: str = "") -> list[speech_pb2.TranscribeRequest]:
    """A recording to transcribe."""
    head = speech_pb2.TranscribeHead(caller=caller, hold_id=new(), language=language)
    return [
        speech_pb2.TranscribeRequest(head=head),
        *(speech_pb2.TranscribeRequest(chunk=piece) for piece in pieces),
    ]


def channel(stack: Stack, service: str, caller: str) -> grpc.Channel:
    """To a service, with the caller's certificate where there are any."""
    if stack.certificates is None:
        return grpc.insecure_channel(stack.targets[service])
    credentials = Tls(stack.certificates / caller).channel_credentials()
    return grpc.secure_channel(stack.targets[service], credentials, [("grpc.ssl_target_name_override", service)])


@pytest.fixture(scope="module")
def scene(stack: Stack) -> Iterator[Scene]:
    """A workspace with sessions: idle, answered, archived, busy, and two that can't pay or can't fit."""
    to_chat, to_tasks = channel(stack, "chat", "gateway"), channel(stack, "chat", "agent")
    to_billing, to_holds = channel(stack, "billing", "gateway"), channel(stack, "billing", "chat")
    to_translate, to_speech = channel(stack, "translate", "gateway"), channel(stack, "speech", "gateway")
    made = Scene(
        {
            "ChatService": chat_pb2_grpc.ChatServiceStub(to_chat),
            "TaskService": chat_pb2_grpc.TaskServiceStub(to_tasks),
            "BillingService": _Both(
                billing_pb2_grpc.BillingServiceStub(to_billing), billing_pb2_grpc.BillingServiceStub(to_holds)
            ),
            "TranslateService": translate_pb2_grpc.TranslateServiceStub(to_translate),
            "SpeechService": speech_pb2_grpc.SpeechServiceStub(to_speech),
        }
    )
    with to_chat, to_tasks, to_billing, to_holds, to_translate, to_speech:
        for workspace in (made.workspace, made.poor):
            made.call("BillingService.OpenAccount", billing_pb2.OpenAccountRequest(workspace_id=workspace))
        for name in ("idle", "answered", "archived", "busy"):
            made.open(name)
            share = of_session(chat_pb2.ShareSessionRequest, made, name, user_id="bob")
            made.call("ChatService.ShareSession", share)
        made.message = made.answered("answered")
        made.update("archived", status=chat_pb2.SESSION_STATUS_ARCHIVED)
        made.open("long", system_prompt=WIDE * 100_000)
        made.open("poor", made.poor)
        made.answered("poor", made.poor)
        made.update("poor", made.poor, max_tokens=16_384)
        _spend(made, made.poor)
        for method, request in keyed(made, b"first"):
            made.call(method, request)
        released = billing_pb2.ReleaseHoldsRequest(hold_ids=[made.released])
        made.call("BillingService.ReleaseHolds", released)
        stack.script("openai", default={"tokens": 5_000, "token_delay_ms": 100})
        busy = made.call("ChatService.SendMessage", send(made, "busy")).task.id
        yield made
        cancel = of_session(chat_pb2.CancelTaskRequest, made, "busy", task_id=busy)
        made.call("ChatService.CancelTask", cancel)


class _Both:
    """Billing for the gateway, and for chat what is not the gateway's."""

    def __init__(self, gateway: Any, chat: Any) -> None:
        self._gateway, self._chat = gateway, chat

    def __getattr__(self, name: str) -> Any:
        method = next(one for one in SERVICES["BillingService"].methods if one.name == name)
        return getattr(self._gateway if "gateway" in method.callers else self._chat, name)


def _spend(scene: Scene, workspace: str) -> None:
    """Hold all but a thousandth of a credit: audio has a price by the second."""
    caller = scene.caller(workspace=workspace)
    account = scene.call("BillingService.GetCredits", billing_pb2.GetCreditsRequest(caller=caller))
    seconds = (account.balance_nano - account.held_nano - 1_000_000) // 100_000
    for part in (min(seconds, 86_400), seconds - 86_400):
        if part > 0:
            audio = {"kind": billing_pb2.CHARGE_KIND_SPEECH, "model": "whisper-1", "input_tokens": 0}
            scene.call("BillingService.HoldCredits", hold(scene, workspace_id=workspace, seconds=part, **audio))


def keyed(scene: Scene, fingerprint: bytes) -> list[tuple[str, Any]]:
    """A call of each method that takes an idempotency key, under one key for each."""
    key: dict[str, Any] = {"idempotency_key": "once", "request_fingerprint": fingerprint}
    bound: dict[str, Any] = {"caller": scene.caller(), "route": "elsewhere", "resource_id": new()}
    amount = len(fingerprint)
    return [
        ("ChatService.CreateSession", chat_pb2.CreateSessionRequest(caller=scene.caller(), **key)),
        ("ChatService.SendMessage", send(scene, "long", content="Hi", **key)),
        ("ChatService.RegenerateAnswer", again(scene, "answered", **key)),
        ("ChatService.TogglePublic", of_session(chat_pb2.TogglePublicRequest, scene, **key)),
        ("ChatService.ShareSession", of_session(chat_pb2.ShareSessionRequest, scene, user_id="cleo", **key)),
        ("ChatService.BindIdempotencyKey", chat_pb2.BindIdempotencyKeyRequest(**bound, **key)),
        ("BillingService.GrantCredits", grant(scene.caller(), idempotency_key=scene.message, amount_nano=amount)),
    ]


Make = Callable[[Scene], Any]
NOT_FOUND, DENIED = ("NOT_FOUND", "NOT_FOUND"), ("PERMISSION_DENIED", "PERMISSION_DENIED")
WRONG_CURSOR = ("INVALID_ARGUMENT", "INVALID_CURSOR")
BUSY, ARCHIVED = ("ABORTED", "TASK_IN_PROGRESS"), ("FAILED_PRECONDITION", "SESSION_NOT_ACTIVE")
NO_CREDITS, STALE = ("FAILED_PRECONDITION", "INSUFFICIENT_CREDITS"), ("FAILED_PRECONDITION", "VERSION_MISMATCH")
NO_MODEL, NO_KEY = ("INVALID_ARGUMENT", "MODEL_UNKNOWN"), ("INVALID_ARGUMENT", "PROVIDER_NOT_CONFIGURED")
NO_FRAMEWORK, LOST = ("INVALID_ARGUMENT", "FRAMEWORK_NOT_AVAILABLE"), ("ABORTED", "LEASE_LOST")
NO_LANGUAGE, NO_PRICE = ("INVALID_ARGUMENT", "LANGUAGE_UNKNOWN"), ("INVALID_ARGUMENT", "PRICE_UNKNOWN")
REUSED = ("INVALID_ARGUMENT", "IDEMPOTENCY_KEY_REUSED")


def create(caller: common_pb2.Caller, **settings: Any) -> chat_pb2.CreateSessionRequest:
    """A session to open."""
    return chat_pb2.CreateSessionRequest(caller=caller, settings=chat_pb2.SessionSettings(**settings))


def step(attempt: int = 1, **fields: Any) -> chat_pb2.RecordStepRequest:
    """A step of a task that nobody has."""
    told = {"task_id": new(), "attempt": attempt, "step": chat_pb2.Step(number=1), **fields}
    return chat_pb2.RecordStepRequest(**told)


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
        lambda s: billing_pb2.ListUsageRequest(caller=s.caller(), page=WRONG_TOKEN),
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
        lambda s: chat_pb2.ListSessionsRequest(caller=s.caller(), page=WRONG_TOKEN),
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
        lambda s: of_session(chat_pb2.ListMessagesRequest, s, page=WRONG_TOKEN),
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
    ("ChatService.ListShares", WRONG_CURSOR, lambda s: of_session(chat_pb2.ListSharesRequest, s, page=WRONG_TOKEN)),
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


def refusal(scene: Scene, method: str, request: Any) -> tuple[str, str]:
    """Code and reason that a call fails with."""
    with pytest.raises(grpc.RpcError) as failed:
        scene.call(method, request)
    error: Any = failed.value
    info = error_info(error)
    return error.code().name, info.reason if info is not None else ""


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
