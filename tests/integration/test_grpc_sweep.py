"""Whatever stands in a field over gRPC, the call is answered or refused with a reason, and soon."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.grpc_errors import error_info
from tests.integration.grpc_scene import (
    PAGE,
    SERVICES,
    Scene,
    again,
    create,
    grant,
    hold,
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

Path = Sequence[FieldDescriptor]

ID = "0198c0de-0000-7000-8000-000000000000"
WIDEST = "\U000e0001"
"""Four bytes, twelve as a gRPC status writes it, and ten characters as Python shows it."""
TEXTS = ("", "\0", "a\0b", "²", ID, WIDEST * 255, "x" * 5_000, WIDEST * 100_001)
TOKENS = (
    "after:\0",
    "after:²",
    f"after:².{ID}",
    f"after:{'9' * 17}.{ID}",
    "after:" + "9" * 18,
    f"after:1e999999_{ID}",
    f"after:-1e-999999_{ID}",
    f"before:sNaN_{ID}",
    f"before:٣_{ID}",
    f"before:{'9' * 4_000}",
)
DOCUMENTS = (
    "{",
    "null",
    "[1]",
    "[{}]",
    "[NaN]",
    r'[{"a": "\u0000", "\u0000": 1}]',
    r'["\ud800"]',
    '[{"a": 1e300}]',
    '[{"a": ' + "[" * 600 + "]" * 600 + "}]",
)
STRUCTS: tuple[dict[str, Any], ...] = (
    {"a": math.nan},
    {"a": [{"b": -math.inf}]},
    {"a": 1e308},
    {"a": ["\0"]},
    {"\0": None},
    {"a": "x" * 1_000_000},
)
BY_TYPE: dict[int, Sequence[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: (b"", b"\0" * 10_000),
    FieldDescriptor.TYPE_BOOL: (True,),
    FieldDescriptor.TYPE_ENUM: (99, -1),
    FieldDescriptor.TYPE_INT32: (-1, -(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-1, -(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_DOUBLE: (-1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324),
}
BY_NAME: dict[str, Sequence[Any]] = {
    "token": (*TEXTS, *TOKENS),
    "tool_calls_json": (*TEXTS, *DOCUMENTS),
    "model_parameters": STRUCTS,
}
TRANSLATION = '{"source": "en", "translated_text": "Hallo"}'
NO_REASON = "without a reason"


@pytest.fixture(scope="module")
def scene(stack: Stack) -> Iterator[Scene]:
    """A workspace where things have happened."""
    with opened(stack) as made:
        yield made


def usual(scene: Scene) -> Sequence[Any]:
    """Requests of every method, good as they are or refused as late as can be."""
    page: dict[str, Any] = {"caller": scene.caller(), "page": PAGE}
    end: dict[str, Any] = {"task_id": new(), "attempt": 1}
    bound: dict[str, Any] = {
        "caller": scene.caller(),
        "route": "elsewhere",
        "idempotency_key": new(),
        "resource_id": new(),
    }
    called = chat_pb2.Message(role="assistant", tool_calls_json="[]")
    return [
        billing_pb2.CheckCreditsRequest(workspace_id=scene.workspace),
        billing_pb2.GetCreditsRequest(caller=scene.caller()),
        billing_pb2.GetCreditUsageRequest(user_id="alice", workspace_ids=[scene.workspace]),
        grant(scene.caller()),
        hold(scene, expires_at=Timestamp(seconds=4_000_000_000)),
        billing_pb2.ListModelsRequest(),
        billing_pb2.ListUsageRequest(**page),
        billing_pb2.OpenAccountRequest(workspace_id=scene.workspace),
        billing_pb2.ReleaseHoldsRequest(hold_ids=[new()]),
        billing_pb2.SettleHoldsRequest(settlements=[billing_pb2.Settlement(hold_id=ID)]),
        chat_pb2.BindIdempotencyKeyRequest(**bound),
        of_session(chat_pb2.CancelTaskRequest, scene, task_id=new()),
        create(scene.caller()),
        of_session(chat_pb2.DeleteMessageRequest, scene, message_id=new()),
        of_session(chat_pb2.DeleteSessionRequest, scene, if_version=99),
        of_session(chat_pb2.GetMessageRequest, scene, message_id=new()),
        chat_pb2.GetPublicSessionRequest(shareable_link_id=new()),
        of_session(chat_pb2.GetSessionRequest, scene),
        of_session(chat_pb2.GetTaskRequest, scene, task_id=new()),
        of_session(chat_pb2.ListMessagesRequest, scene, page=PAGE),
        chat_pb2.ListSessionsRequest(**page),
        chat_pb2.ListSessionsRequest(search="words", **page),
        of_session(chat_pb2.ListSharesRequest, scene, page=PAGE),
        again(scene),
        of_session(chat_pb2.RevokeShareRequest, scene, user_id="nobody"),
        send(scene, "archived"),
        of_session(chat_pb2.ShareSessionRequest, scene, user_id="dora"),
        of_session(chat_pb2.TogglePublicRequest, scene),
        update(
            scene,
            name="idle",
            system_prompt="Be brief.",
            ai_provider="openai",
            ai_model="gpt-4o-mini",
            temperature=1.0,
            max_tokens=10,
            top_p=1.0,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            model_parameters=None,
            agent_framework="none",
            status=chat_pb2.SESSION_STATUS_ACTIVE,
        ),
        recording(scene.caller())[0],
        chat_pb2.ClaimTasksRequest(worker_id="worker", limit=1),
        chat_pb2.CompleteTaskRequest(finish_reason="stop", **end),
        chat_pb2.FailTaskRequest(error_code="poison", error_detail="None.", **end),
        chat_pb2.HeartbeatTasksRequest(heartbeats=[chat_pb2.Heartbeat(**end)]),
        step(step=chat_pb2.Step(number=1, messages=[called])),
        translate(scene.caller()),
    ]


def paths(message: Descriptor) -> Iterator[Path]:
    """The fields that hold values, each with those it stands in."""
    for field in message.fields:
        if field.message_type is None or field.name in BY_NAME:
            yield (field,)
        else:
            yield from ((field, *inner) for inner in paths(field.message_type))


def changed(request: Any, path: Path, value: Any) -> Any:
    """The request with another value there; of a list with this one alone."""
    made = type(request)()
    made.CopyFrom(request)
    holder = made
    for field in path[:-1]:
        inner = getattr(holder, field.name)
        holder = (inner[0] if inner else inner.add()) if field.is_repeated else inner
    field = path[-1]
    if field.is_repeated:
        holder.ClearField(field.name)
        getattr(holder, field.name).append(value)
    elif field.message_type is not None:
        getattr(holder, field.name).update(value)
    else:
        setattr(holder, field.name, value)
    return made


def ended(scene: Scene, method: str, request: Any) -> str:
    """How a call ended: "", or code and reason."""
    try:
        scene.call(method, [request] if method == "SpeechService.Transcribe" else request)
    except grpc.RpcError as failed:
        error: Any = failed
        try:
            info = error_info(error)
        except ValueError:  # the transport's own failure in place of the one that was sent
            info = None
        return f"{error.code().name} {info.reason if info is not None else NO_REASON}"
    return ""


@pytest.mark.parametrize("service", SERVICES)
def test_whatever_stands_in_a_field_the_call_is_answered_or_refused_with_a_reason(
    stack: Stack, scene: Scene, service: str
) -> None:
    stack.script("openai", default={"text": TRANSLATION})
    methods = {method.request: f"{service}.{method.name}" for method in SERVICES[service].methods}
    requests = [request for request in usual(scene) if request.DESCRIPTOR.full_name in methods]
    assert {request.DESCRIPTOR.full_name for request in requests} == methods.keys()
    tried = [
        (method, ".".join(field.name for field in path), ascii(value)[:50], ended(scene, method, made))
        for request in requests
        for method in [methods[request.DESCRIPTOR.full_name]]
        for path in paths(request.DESCRIPTOR)
        for value in BY_NAME.get(path[-1].name) or BY_TYPE[path[-1].type]
        for made in [changed(request, path, value)]
    ]
    assert [one for one in tried if one[-1].endswith((NO_REASON, "UNAVAILABLE UNAVAILABLE"))] == []
