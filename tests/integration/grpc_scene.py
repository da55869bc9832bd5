"""A workspace where things have happened, and requests to try on the services over gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import grpc
from backendai.billing.v1 import billing_pb2, billing_pb2_grpc
from backendai.chat.v1 import chat_pb2, chat_pb2_grpc
from backendai.common.v1 import common_pb2
from backendai.speech.v1 import speech_pb2, speech_pb2_grpc
from backendai.translate.v1 import translate_pb2, translate_pb2_grpc

from docs.contracts import read
from services.kit.tls import Tls
from tests.integration.stack import Stack

DEADLINE_SECONDS = 15.0
SERVICES = {service.name: service for file in read() for service in file.services}
PAGE = common_pb2.PageRequest(limit=5)
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


@contextmanager
def opened(stack: Stack) -> Iterator[Scene]:
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


def create(caller: common_pb2.Caller, **settings: Any) -> chat_pb2.CreateSessionRequest:
    """A session to open."""
    return chat_pb2.CreateSessionRequest(caller=caller, settings=chat_pb2.SessionSettings(**settings))


def step(attempt: int = 1, **fields: Any) -> chat_pb2.RecordStepRequest:
    """A step of a task that nobody has."""
    told = {"task_id": new(), "attempt": attempt, "step": chat_pb2.Step(number=1), **fields}
    return chat_pb2.RecordStepRequest(**told)
