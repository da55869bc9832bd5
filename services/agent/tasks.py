"""Chat's TaskService as the worker sees it: protobuf stays in here."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
import structlog
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2, chat_pb2_grpc
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from services.agent.domain import (
    Budget,
    Cancelled,
    Completed,
    End,
    Failed,
    Message,
    Settings,
    Step,
    TaskWarning,
    ToolCall,
    Turn,
    Usage,
)
from services.agent.errors import LeaseLost, RunError
from services.kit.errors import DomainError, Unavailable
from services.kit.grpc_client import as_domain_error
from services.kit.money import Tier
from services.kit.text import replace_unstorable

log = structlog.get_logger()

HEARTBEAT_TIMEOUT_SECONDS = 4.0
# A heartbeat carries the answer so far for a cancel whose agent is gone; more than this of it is left out.
MAX_TEXT_CHARACTERS = 200_000
# gRPC messages end at 16 MiB.
MAX_HEARTBEATS_CHARACTERS = 3_000_000
LEASE_LOST = "LEASE_LOST"
MAX_SAFE_INTEGER = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    turn: Turn
    text: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class ToStop:
    """The runs that chat wants stopped, by task id."""

    lost: Sequence[str]
    cancelled: Sequence[str]


class Tasks:
    """The calls. What must arrive is sent again for as long as chat can't be reached; the caller bounds the time."""

    def __init__(self, channel: grpc.aio.Channel, worker_id: str) -> None:
        self._stub: chat_pb2_grpc.TaskServiceAsyncStub = chat_pb2_grpc.TaskServiceStub(channel)
        self._worker_id = worker_id

    async def claim(self, limit: int) -> list[Turn]:
        """Lease up to so many tasks. Unavailable when chat can't be reached."""
        request = chat_pb2.ClaimTasksRequest(worker_id=self._worker_id, limit=limit)
        response = await _call(self._stub.ClaimTasks, request)
        turns: list[Turn] = []
        for task in response.tasks:
            try:
                turns.append(_turn(task))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                log.error("task_not_understood", task_id=task.task_id, error=type(error).__name__)
                await self._refuse(task)
        return turns

    async def _refuse(self, task: chat_pb2.ClaimedTask) -> None:
        """End a task that this agent can't read, rather than run into it again and again."""
        request = chat_pb2.FailTaskRequest(
            task_id=task.task_id, attempt=task.attempt, error_code=RunError.code, error_detail=RunError.detail
        )
        with suppress(DomainError, LeaseLost, grpc.aio.AioRpcError):
            await _call(self._stub.FailTask, request)

    async def heartbeat(self, runs: Sequence[Progress]) -> ToStop:
        """Renew the leases of all these runs. Unavailable when chat can't be reached."""
        lost: list[str] = []
        cancelled: list[str] = []
        heartbeats = [heartbeat_of(run.turn, run.text, run.usage) for run in runs]
        for batch in _in_batches(heartbeats):
            request = chat_pb2.HeartbeatTasksRequest(heartbeats=batch)
            response = await _call(self._stub.HeartbeatTasks, request, timeout=HEARTBEAT_TIMEOUT_SECONDS)
            lost += response.lost_task_ids
            cancelled += response.cancelled_task_ids
        return ToStop(lost, cancelled)

    async def keep_step(self, turn: Turn, step: Step) -> None:
        """Keep a step. LeaseLost when the attempt is over."""
        request = chat_pb2.RecordStepRequest(task_id=turn.task_id, attempt=turn.attempt, step=step_to_wire(step))
        await _insist(self._stub.RecordStep, request)

    async def end(
        self, turn: Turn, end: End, usage: Usage, *, last_event: int, warnings: Sequence[TaskWarning] = ()
    ) -> None:
        """End the task. LeaseLost when the attempt is over, also when an earlier try had arrived."""
        common: dict[str, Any] = {
            "task_id": turn.task_id,
            "attempt": turn.attempt,
            "usage": usage_to_wire(usage),
            "last_event": last_event,
            "warnings": [chat_pb2.TaskWarning(code=warning.code, detail=warning.detail) for warning in warnings],
        }
        complete, fail = chat_pb2.CompleteTaskRequest, chat_pb2.FailTaskRequest
        match end:
            case Completed(content, reason):
                await _insist(self._stub.CompleteTask, complete(content=content, finish_reason=reason, **common))
            case Cancelled(content):
                request = complete(content=content, finish_reason="cancelled", cancelled=True, **common)
                await _insist(self._stub.CompleteTask, request)
            case Failed(code, detail):
                await _insist(self._stub.FailTask, fail(error_code=code, error_detail=detail, **common))


Rpc = Callable[..., Awaitable[Any]]


async def _call(rpc: Rpc, request: Any, **options: Any) -> Any:
    try:
        return await rpc(request, **options)
    except grpc.aio.AioRpcError as error:
        raise _meaning(error) from None


def _meaning(error: grpc.aio.AioRpcError) -> Exception:
    meaning = as_domain_error(error)
    return LeaseLost() if isinstance(meaning, DomainError) and meaning.reason == LEASE_LOST else meaning


_IF_UNAVAILABLE = retry_if_exception_type(Unavailable)
_WAIT = wait_random_exponential(multiplier=0.1, min=0.05, max=2.0)


async def _insist(rpc: Rpc, request: Any) -> Any:
    """Call until chat has answered. Only a call that failed is worth what the machinery of retries costs."""
    try:
        return await _call(rpc, request)
    except Unavailable:
        await asyncio.sleep(random.uniform(0.05, 0.2))
    return await AsyncRetrying(retry=_IF_UNAVAILABLE, wait=_WAIT, reraise=True)(_call, rpc, request)


def _in_batches(heartbeats: Sequence[chat_pb2.Heartbeat]) -> list[list[chat_pb2.Heartbeat]]:
    """One batch as a rule; more when the texts are too long for one message."""
    batches: list[list[chat_pb2.Heartbeat]] = []
    size = 0
    for heartbeat in heartbeats:
        if not batches or size + len(heartbeat.text) > MAX_HEARTBEATS_CHARACTERS:
            batches.append([])
            size = 0
        batches[-1].append(heartbeat)
        size += len(heartbeat.text)
    return batches


# --- from the wire ---


def _turn(task: chat_pb2.ClaimedTask) -> Turn:
    return Turn(
        task_id=task.task_id,
        attempt=task.attempt,
        settings=_settings(task.settings),
        history=tuple(_message(message) for message in task.history),
        steps=tuple(_step(step) for step in task.steps),
        budget=Budget(task.held_nano, _tiers(task.rates), task.output_tokens),
        deadline_at=task.deadline_at.ToNanoseconds() / 1e9,
        user_message_id=task.user_message_id,
        created_at=task.created_at.ToNanoseconds() / 1e9,
        traceparent=task.traceparent,
    )


def _settings(settings: chat_pb2.SessionSettings) -> Settings:
    def optional(name: str) -> Any:
        return getattr(settings, name) if settings.HasField(name) else None  # type: ignore[arg-type]

    return Settings(
        provider=settings.ai_provider,
        model=settings.ai_model,
        framework=settings.agent_framework,
        system_prompt=optional("system_prompt"),
        temperature=optional("temperature"),
        max_tokens=optional("max_tokens"),
        top_p=optional("top_p"),
        frequency_penalty=optional("frequency_penalty"),
        presence_penalty=optional("presence_penalty"),
        model_parameters=_object(settings.model_parameters) if settings.HasField("model_parameters") else {},
    )


def _object(struct: Struct) -> dict[str, Any]:
    return {name: _value(value) for name, value in struct.fields.items()}


def _value(value: Value) -> Any:
    """JSON's own value. A Struct knows doubles only, but a provider refuses 40.0 where it takes an integer.

    Beyond 2^53 it can only have been a double, and as an integer it would have more digits than JSON writers take.
    """
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) <= MAX_SAFE_INTEGER else number
    if kind == "struct_value":
        return _object(value.struct_value)
    if kind == "list_value":
        return _list(value.list_value)
    return None if kind in (None, "null_value") else getattr(value, kind)


def _list(values: ListValue) -> list[Any]:
    return [_value(value) for value in values.values]


def _tiers(rates: billing_pb2.Rates) -> tuple[Tier, ...]:
    return tuple(
        Tier(tier.up_to_input_tokens or None, tier.input_nano_per_million, tier.output_nano_per_million)
        for tier in rates.tiers
    )


def _message(message: chat_pb2.Message) -> Message:
    if not message.tool_calls_json:
        return Message(message.role, message.content, (), message.tool_call_id)
    calls = tuple(_tool_call(call) for call in orjson.loads(message.tool_calls_json))
    return Message(message.role, message.content, calls, message.tool_call_id)


def _tool_call(call: dict[str, Any]) -> ToolCall:
    signature = call.get("extra_content", {}).get("google", {}).get("thought_signature", "")
    return ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"], signature)


def _step(step: chat_pb2.Step) -> Step:
    usage = Usage(step.usage.input_tokens, step.usage.output_tokens, step.usage.estimated)
    return Step(step.number, tuple(_message(message) for message in step.messages), usage)


# --- to the wire ---


def heartbeat_of(turn: Turn, text: str, usage: Usage) -> chat_pb2.Heartbeat:
    """A heartbeat. Any text and any counts can be sent: one that can't be built would end the leases of all runs."""
    return chat_pb2.Heartbeat(
        task_id=turn.task_id,
        attempt=turn.attempt,
        text=replace_unstorable(text[:MAX_TEXT_CHARACTERS]),
        usage=usage_to_wire(usage),
    )


def step_to_wire(step: Step) -> chat_pb2.Step:
    messages = [_wire_message(message) for message in step.messages]
    return chat_pb2.Step(number=step.number, messages=messages, usage=usage_to_wire(step.usage))


def _wire_message(message: Message) -> chat_pb2.Message:
    calls = orjson.dumps([_wire_tool_call(call) for call in message.tool_calls]).decode() if message.tool_calls else ""
    return chat_pb2.Message(
        role=message.role, content=message.content, tool_calls_json=calls, tool_call_id=message.tool_call_id
    )


def _wire_tool_call(call: ToolCall) -> dict[str, Any]:
    """OpenAI's shape; what only Google needs goes where Google's own OpenAI-compatible API puts it."""
    wire: dict[str, Any] = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    if call.signature:
        wire["extra_content"] = {"google": {"thought_signature": call.signature}}
    return wire


def usage_to_wire(usage: Usage) -> billing_pb2.Usage:
    """The counts, within what the message can hold."""
    return billing_pb2.Usage(
        input_tokens=_within_limits(usage.input_tokens),
        output_tokens=_within_limits(usage.output_tokens),
        estimated=usage.estimated,
    )


def _within_limits(tokens: int) -> int:
    return min(max(0, tokens), MAX_SAFE_INTEGER)


def status_entry(turn: Turn, state: chat_pb2.TaskState.ValueType) -> bytes:
    """A task's entry of the status bucket, as of now."""
    return chat_pb2.TaskStatus(
        state=state,
        attempt=turn.attempt,
        updated_at=_timestamp(time.time()),
        created_at=_timestamp(turn.created_at) if turn.created_at else None,
        user_message_id=turn.user_message_id,
        held_nano=turn.budget.held_nano,
    ).SerializeToString()


def _timestamp(seconds: float) -> Timestamp:
    """To the microsecond, as chat keeps it: a float is not as exact as its digits."""
    microseconds = round(seconds * 1_000_000)
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1_000)


STATES = {
    Completed: chat_pb2.TASK_STATE_COMPLETED,
    Cancelled: chat_pb2.TASK_STATE_CANCELLED,
    Failed: chat_pb2.TASK_STATE_FAILED,
}
