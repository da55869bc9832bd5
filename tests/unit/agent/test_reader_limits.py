"""What a provider may not do to a worker: values that protobuf, JSON or Python's own limits refuse."""

import json
from typing import Any

import pytest
from backendai.chat.v1.chat_pb2 import TaskEvent

from services.agent.domain import Usage
from services.agent.providers import MAX_TOOL_CALLS
from services.agent.providers.json_text import dumps
from services.agent.tasks import heartbeat_of, usage_to_wire
from services.common.providers.errors import ProviderBadResponse
from tests.fuzz.reading import GOOGLE, OPENAI, a_turn, read

DONE = b"data: [DONE]\n\n"


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields}]})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("id", ["\ud83d", "a\0b"])
async def test_a_tool_call_id_that_no_event_can_hold_is_cleaned(id: str) -> None:
    piece = {"index": 0, "id": id, "function": {"name": "weather", "arguments": "{}"}}
    reading = await read(OPENAI, [delta(tool_calls=[piece]) + DONE])
    assert reading.calls == [("weather", "{}")]


async def test_a_gemini_call_id_that_no_event_can_hold_is_cleaned() -> None:
    call = {"functionCall": {"id": "\ud83d", "name": "weather", "args": {}}}
    reading = await read(GOOGLE, [event({"candidates": [{"content": {"parts": [call]}}]}) + DONE])
    assert reading.calls == [("weather", "{}")]


@pytest.mark.parametrize("vendor", [OPENAI, GOOGLE])
async def test_arguments_nested_too_deep_are_a_bad_response(vendor: str) -> None:
    if vendor == OPENAI:
        body = delta(tool_calls=[{"index": 0, "function": {"name": "weather", "arguments": {"a": "DEEP"}}}])
    else:
        parts = [{"functionCall": {"name": "weather", "args": {"a": "DEEP"}}}]
        body = event({"candidates": [{"content": {"parts": parts}}]})
    reading = await read(vendor, [body.replace(b'"DEEP"', b"[" * 1_000 + b"]" * 1_000) + DONE])
    assert reading.unexpected is None
    assert reading.code == "provider_bad_response"


def test_a_value_nested_too_deep_is_no_json_text() -> None:
    with pytest.raises(ProviderBadResponse):
        dumps(nested(100_000))


async def test_a_call_index_nested_too_deep_is_no_index() -> None:
    calls = [{"index": nested(900), "function": {"name": "weather"}} for _ in range(2)]
    reading = await read(OPENAI, [delta(content="Hi", tool_calls=calls[:1]) + delta(tool_calls=calls[1:]) + DONE])
    assert reading.unexpected is None


async def test_no_answer_holds_more_tool_calls_than_the_limit() -> None:
    parts = [{"functionCall": {"name": "f"}}] * (MAX_TOOL_CALLS + 10)
    reading = await read(GOOGLE, [event({"candidates": [{"content": {"parts": parts}}]}) + DONE])
    assert len(reading.calls) == MAX_TOOL_CALLS


async def test_numbers_that_json_does_not_have_are_null_in_arguments() -> None:
    parts = [{"functionCall": {"name": "f", "args": {"a": float("nan"), "b": "\ud83d"}}}]
    body = event({"candidates": [{"content": {"parts": parts}}]})
    reading = await read(GOOGLE, [body + DONE])
    assert json.loads(reading.calls[0][1]) == {"a": None, "b": "\ufffd"}


@pytest.mark.parametrize("tokens", [-1, 2**63, 10**30])
def test_any_count_can_be_put_into_a_heartbeat(tokens: int) -> None:
    beat = heartbeat_of(a_turn(OPENAI), "text \ud83d \0", Usage(tokens, tokens))
    assert beat.text == "text \ufffd \ufffd"
    assert 0 <= beat.usage.input_tokens <= 2**53
    assert usage_to_wire(Usage(5, 7)).output_tokens == 7
    assert TaskEvent(delta=beat.text).SerializeToString()
