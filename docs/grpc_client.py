"""What another service does with BackendAI Chat: read prices and a balance, ask a question, tell refusals apart.

python client.py --chat dns:///chat:50051 --billing dns:///billing:50052 --workspace UUID --user alice --tls FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
from backendai.billing.v1 import billing_pb2, billing_pb2_grpc
from backendai.chat.v1 import chat_pb2, chat_pb2_grpc
from backendai.common.v1 import common_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

DEADLINE_SECONDS = 5.0  # of every call whose method names no other
CANCEL_DEADLINE_SECONDS = 10.0
START_SECONDS = 30.0
ANSWER_SECONDS = 120.0
CHAT = chat_pb2.DESCRIPTOR.services_by_name["ChatService"]
BILLING = billing_pb2.DESCRIPTOR.services_by_name["BillingService"]


def service_config(service: Any) -> str:
    """Repeat what the protos mark, while it is UNAVAILABLE; spread calls over the replicas that are ready."""
    repeatable = [
        {"service": service.full_name, "method": method.name}
        for method in service.methods
        if method.GetOptions().idempotency_level
    ]
    retry_policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps(
        {
            "methodConfig": [{"name": repeatable, "retryPolicy": retry_policy}],
            "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": ""},
        }
    )


def dial(callee: str, target: str, service: Any, tls: Path | None) -> grpc.Channel:
    """A channel to every address of the target. With TLS each must show the callee's certificate, and we show ours."""
    options = [
        ("grpc.service_config", service_config(service)),
        ("grpc.max_receive_message_length", 16 * 1024 * 1024),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.enable_http_proxy", 0),
    ]
    if tls is None:
        return grpc.insecure_channel(target, options)
    authority, key, certificate = ((tls / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.secure_channel(target, credentials, [*options, ("grpc.ssl_target_name_override", callee)])


def wait_until_serving(channel: grpc.Channel) -> None:
    """Wait for a replica that is ready: services may start in any order."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=START_SECONDS, wait_for_ready=True)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def why(error: Any) -> tuple[grpc.StatusCode, ErrorInfo]:
    """Code and reason of a failed call, which is what is raised; without a reason no service has answered."""
    info, status = ErrorInfo(), rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            break
    return error.code(), info


@contextmanager
def refused() -> Iterator[None]:
    """Print why what is inside was refused; what is no refusal goes on as it came."""
    try:
        yield
    except grpc.RpcError as error:
        code, info = why(error)
        if info.domain != "backendai":
            raise
        print(f"refused: {code.name} {info.reason} {dict(sorted(info.metadata.items()))}")


def insist(method: Callable[..., Any], request: Any) -> Any:
    """Repeat a call that an idempotency key makes repeatable, also when its deadline has passed."""
    for longest_wait_seconds in (0.2, 0.5, 1.0):
        try:
            return method(request, timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            code, _ = why(error)
            if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
        time.sleep(random.uniform(longest_wait_seconds / 2, longest_wait_seconds))
    return method(request, timeout=DEADLINE_SECONDS)


def to_credits(nano: int) -> str:
    """Nano-credits as credits: exact, so no float."""
    return f"{Decimal(nano).scaleb(-9).normalize():f}"


def ask(chat: Any, caller: common_pb2.Caller, session_id: str, question: str) -> chat_pb2.Task:
    """Send a message and wait until its task has ended and was settled; one that takes too long is cancelled."""
    request = chat_pb2.SendMessageRequest(
        caller=caller,
        session_id=session_id,
        task_id=str(uuid.uuid4()),
        content=question,
        idempotency_key=str(uuid.uuid4()),
        request_fingerprint=hashlib.sha256(question.encode()).digest(),
    )
    task: chat_pb2.Task = insist(chat.SendMessage, request).task
    wanted = chat_pb2.GetTaskRequest(caller=caller, session_id=session_id, task_id=task.id)
    give_up_at = time.monotonic() + ANSWER_SECONDS
    while task.state == chat_pb2.TASK_STATE_PROCESSING or task.held_nano:
        if time.monotonic() > give_up_at:
            unwanted = chat_pb2.CancelTaskRequest(caller=caller, session_id=session_id, task_id=task.id)
            cancelled: chat_pb2.Task = chat.CancelTask(unwanted, timeout=CANCEL_DEADLINE_SECONDS).task
            return cancelled
        time.sleep(0.5)
        task = chat.GetTask(wanted, timeout=DEADLINE_SECONDS).task
    return task


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chat", default="ipv4:127.0.0.1:50051", help="gRPC target; ipv4: takes several addresses")
    parser.add_argument("--billing", default="ipv4:127.0.0.1:50052")
    parser.add_argument("--tls", type=Path, help="folder with tls.crt, tls.key and ca.crt; plain text without")
    parser.add_argument("--user", default="alice")
    parser.add_argument("--workspace", required=True, help="a UUID")
    told = parser.parse_args()

    to_chat = dial("chat", told.chat, CHAT, told.tls)
    to_billing = dial("billing", told.billing, BILLING, told.tls)
    with to_chat, to_billing:
        wait_until_serving(to_chat)
        wait_until_serving(to_billing)
        chat, billing = chat_pb2_grpc.ChatServiceStub(to_chat), billing_pb2_grpc.BillingServiceStub(to_billing)
        alice = common_pb2.Caller(user_id=told.user, workspace_id=told.workspace, role=common_pb2.ROLE_MEMBER)
        stranger = common_pb2.Caller(user_id="mallory", workspace_id=told.workspace)  # without a role: a guest

        listed = billing.ListModels(billing_pb2.ListModelsRequest(), timeout=DEADLINE_SECONDS)
        print(f"{len(listed.models)} models have a price")
        account = billing.GetCredits(billing_pb2.GetCreditsRequest(caller=alice), timeout=DEADLINE_SECONDS)
        print(f"available: {to_credits(account.balance_nano - account.held_nano)}")
        with refused():
            billing.GetCredits(billing_pb2.GetCreditsRequest(caller=stranger), timeout=DEADLINE_SECONDS)

        with refused():
            unknown = chat_pb2.SessionSettings(ai_model="gpt-9")
            chat.CreateSession(chat_pb2.CreateSessionRequest(caller=alice, settings=unknown), timeout=DEADLINE_SECONDS)
        settings = chat_pb2.SessionSettings(name="From another service", temperature=0)
        opened = insist(
            chat.CreateSession,
            chat_pb2.CreateSessionRequest(caller=alice, settings=settings, idempotency_key=str(uuid.uuid4())),
        )
        session_id = opened.session.id
        task = ask(chat, alice, session_id, "What is the capital of France?")
        print(f"{chat_pb2.TaskState.Name(task.state)}: {''.join(message.content for message in task.ai_messages)}")
        print(f"charged: {to_credits(task.charged_nano)}")
        chat.DeleteSession(chat_pb2.DeleteSessionRequest(caller=alice, session_id=session_id), timeout=DEADLINE_SECONDS)


if __name__ == "__main__":
    main()
