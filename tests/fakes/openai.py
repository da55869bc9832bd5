"""OpenAI's chat completions on the wire, streamed and whole, with its true error bodies."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tests.fakes.provider import KEY_HEADERS, Behaviour, FakeProvider, Stream, Whole, run_forever

CREATED = 1_760_000_000
ID = "chatcmpl-CPmZkq1Yw7uNn3xYbJ4cD0aGfT2sH"
FINGERPRINT = "fp_560af6e559"
# A key that OpenAI does not know.
UNKNOWN_KEY = "sk-unknown-0000"

ERRORS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "invalid_key": (
        401,
        {
            "message": "Incorrect API key provided: sk-unkno*****0000. You can find your API key at "
            "https://platform.openai.com/account/api-keys.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        },
    ),
    "no_access": (
        404,
        {
            "message": "The model `gpt-unknown` does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
        },
    ),
    "bad_parameter": (
        400,
        {
            "message": "Unsupported value: 'temperature' does not support 0.7 with this model. "
            "Only the default (1) value is supported.",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "unsupported_value",
        },
    ),
    "context_too_long": (
        400,
        {
            "message": "This model's maximum context length is 128000 tokens. However, your messages resulted in "
            "150000 tokens. Please reduce the length of the messages.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        },
    ),
    "local_context_too_long": (
        400,
        {
            "code": 400,
            "message": "the request exceeds the available context size, try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 5000,
            "n_ctx": 4096,
        },
    ),
    "content_policy": (
        400,
        {
            "message": "Your request was rejected as a result of our safety system.",
            "type": "invalid_request_error",
            "param": None,
            "code": "content_policy_violation",
        },
    ),
    "rate_limit": (
        429,
        {
            "message": "Rate limit reached for gpt-4o-mini in organization org-AbCdEf on requests per min (RPM): "
            "Limit 3, Used 3, Requested 1. Please try again in 20s.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        },
    ),
    "quota": (
        429,
        {
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_quota",
        },
    ),
    "server_error": (
        500,
        {
            "message": "The server had an error while processing your request. Sorry about that!",
            "type": "server_error",
            "param": None,
            "code": None,
        },
    ),
    "overloaded": (
        503,
        {
            "message": "The engine is currently overloaded, please try again later",
            "type": "server_error",
            "param": None,
            "code": "service_unavailable",
        },
    ),
}
IN_STREAM_ERROR = {"error": ERRORS["server_error"][1]}


class FakeOpenAI(FakeProvider):
    """`/v1/chat/completions`."""

    base_path = "/v1"

    def refuse(self, path: str, headers: Mapping[str, str]) -> Whole | None:
        """401 without a key or with the unknown one, 404 for another path."""
        key = headers.get(KEY_HEADERS[0], "")
        if not key or key.endswith(UNKNOWN_KEY):
            return error("invalid_key")
        if not path.endswith("/chat/completions"):
            message = f"Invalid URL (POST {path})"
            return _error(404, {"message": message, "type": "invalid_request_error", "param": None, "code": None})
        return None

    def render(self, path: str, body: dict[str, Any], behaviour: Behaviour) -> Stream | Whole:
        """The answer as a stream of chunks, or as one object."""
        if behaviour.error:
            return error(behaviour.error, retry_after=behaviour.retry_after)
        model = body["model"]
        if not body.get("stream"):
            return _completion(model, behaviour)
        wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return _stream(model, behaviour, wants_usage and behaviour.usage)


def error(name: str, *, retry_after: str = "") -> Whole:
    """One of OpenAI's errors."""
    return _error(*ERRORS[name], headers={"Retry-After": retry_after} if retry_after else {})


def _error(status: int, detail: dict[str, Any], *, headers: Mapping[str, str] | None = None) -> Whole:
    body = json.dumps({"error": detail}, indent=4).encode()
    return Whole(body, status, {"x-request-id": "req_0123456789abcdef", **(headers or {})})


@lru_cache(maxsize=256)
def _stream(model: str, behaviour: Behaviour, with_usage: bool) -> Stream:
    def chunk(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        fields: dict[str, Any] = {
            "id": ID,
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }
        return _event(fields | {"usage": usage} if with_usage else fields)

    def choice(delta: dict[str, Any], finish_reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    head = chunk(choice({"role": "assistant", "content": "", "refusal": None}))
    pieces = [chunk(choice({"content": piece})) for piece in behaviour.pieces]
    pieces += [chunk(choice(delta)) for delta in _tool_call_deltas(behaviour)]
    reason = "tool_calls" if behaviour.tool_calls else behaviour.finish_reason
    tail = [chunk(choice({}, reason))]
    if with_usage:
        tail.append(chunk([], _usage(behaviour)))
    tail.append(b"data: [DONE]\n\n")
    match behaviour.fault:
        case "empty":
            head, pieces, tail = chunk([]), [], [b"data: [DONE]\n\n"]
        case "malformed":
            tail = [b'data: {"id":"chatcmpl-CPmZ","object":"chat.completion.ch\n\n']
        case "unfinished":
            tail = tail[-1:]
        case "cut_short":
            tail = []
        case "error_event":
            tail = [_event(IN_STREAM_ERROR)]
    return Stream(head, pieces, b"".join(tail))


def _tool_call_deltas(behaviour: Behaviour) -> list[dict[str, Any]]:
    """As OpenAI streams them: the name first, the arguments in pieces after it."""
    deltas: list[dict[str, Any]] = []
    for index, (name, arguments) in enumerate(behaviour.tool_calls):
        start = {"index": index, "id": call_id(index), "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [start]})
        half = len(arguments) // 2
        pieces = (arguments[:half], arguments[half:])
        deltas.extend({"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces)
    return deltas


def call_id(index: int) -> str:
    """The id of an answer's n-th tool call."""
    return f"call_{index}AbCdEfGhIjKlMnOpQrStUv"


def _usage(behaviour: Behaviour) -> dict[str, Any]:
    output = behaviour.counted_output + behaviour.thinking_tokens
    return {
        "prompt_tokens": behaviour.input_tokens,
        "completion_tokens": output,
        "total_tokens": behaviour.input_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": behaviour.thinking_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


@lru_cache(maxsize=256)
def _completion(model: str, behaviour: Behaviour) -> Whole:
    if behaviour.fault == "malformed":
        return Whole(b'{"id": "chatcmpl-CPmZ", "object": "chat.comp')
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if behaviour.refusal else behaviour.answer or None,
        "refusal": behaviour.refusal or None,
        "annotations": [],
    }
    if behaviour.tool_calls:
        message["tool_calls"] = [
            {"id": call_id(index), "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(behaviour.tool_calls)
        ]
    reason = "tool_calls" if behaviour.tool_calls else behaviour.finish_reason
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    fields: dict[str, Any] = {
        "id": ID,
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [] if behaviour.fault == "empty" else [choice],
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    if behaviour.usage:
        fields["usage"] = _usage(behaviour)
    return Whole(json.dumps(fields).encode())


if __name__ == "__main__":
    run_forever(FakeOpenAI)
