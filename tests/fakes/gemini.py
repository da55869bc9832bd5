"""Gemini's generateContent and streamGenerateContent on the wire, with its true error bodies."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tests.fakes.provider import KEY_HEADERS, Behaviour, FakeProvider, Stream, Whole, run_forever

RESPONSE_ID = "3fLnaKqYJ8-Pz7IPwKvBkQU"
UNKNOWN_KEY = "AIza-unknown"
# OpenAI's words, in which behaviours are written, to Gemini's.
FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


def _info(reason: str) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }


ERRORS: Mapping[str, dict[str, Any]] = {
    "invalid_key": {
        "code": 400,
        "message": "API key not valid. Please pass a valid API key.",
        "status": "INVALID_ARGUMENT",
        "details": [_info("API_KEY_INVALID")],
    },
    "no_key": {
        "code": 403,
        "message": "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API.",
        "status": "PERMISSION_DENIED",
    },
    "no_access": {
        "code": 404,
        "message": "models/gemini-unknown is not found for API version v1beta, "
        "or is not supported for generateContent.",
        "status": "NOT_FOUND",
    },
    "bad_parameter": {
        "code": 400,
        "message": "* GenerateContentRequest.generation_config.temperature: "
        "temperature must be in the range [0.0, 2.0].\n",
        "status": "INVALID_ARGUMENT",
    },
    "context_too_long": {
        "code": 400,
        "message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048575).",
        "status": "INVALID_ARGUMENT",
    },
    "rate_limit": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details.\n"
        "* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 2",
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}],
    },
    "server_error": {
        "code": 500,
        "message": "An internal error has occurred. Please retry or report in "
        "https://developers.generativeai.google/guide/troubleshooting",
        "status": "INTERNAL",
    },
    "overloaded": {
        "code": 503,
        "message": "The model is overloaded. Please try again later.",
        "status": "UNAVAILABLE",
    },
}


class FakeGemini(FakeProvider):
    """`/v1beta/models/<model>:generateContent` and `:streamGenerateContent?alt=sse`."""

    def refuse(self, path: str, headers: Mapping[str, str]) -> Whole | None:
        """An error without a key, with the unknown one, or for another path."""
        key = headers.get(KEY_HEADERS[1])
        if not key:
            return error("no_key")
        if key == UNKNOWN_KEY:
            return error("invalid_key")
        return None if path.startswith("/v1beta/models/") else Whole(b"", 404)

    def render(self, path: str, body: dict[str, Any], behaviour: Behaviour) -> Stream | Whole:
        """The answer as a stream of responses, or as one."""
        if behaviour.error:
            return error(behaviour.error, retry_after=behaviour.retry_after)
        model, _, method = path.removeprefix("/v1beta/models/").partition(":")
        if method == "streamGenerateContent?alt=sse":
            return _stream(model, behaviour)
        if method == "generateContent":
            return _whole(model, behaviour)
        return error("no_access")


def error(name: str, *, retry_after: str = "") -> Whole:
    """One of Gemini's errors."""
    fields = ERRORS[name]
    body = json.dumps({"error": fields}, indent=2).encode()
    return Whole(body, fields["code"], {"Retry-After": retry_after} if retry_after else {})


@lru_cache(maxsize=256)
def _stream(model: str, behaviour: Behaviour) -> Stream:
    count = len(behaviour.pieces)
    parts = [[{"text": piece}] for piece in behaviour.pieces]
    parts += [[_function_call(name, arguments)] for name, arguments in behaviour.tool_calls]
    last = parts.pop() if parts and not behaviour.fault else [{"text": ""}]
    pieces = [_event(_response(model, part, None, behaviour, output=min(n, count))) for n, part in enumerate(parts, 1)]
    tail = _event(_response(model, last, FINISH_REASONS[behaviour.finish_reason], behaviour))
    match behaviour.fault:
        case "empty":
            pieces, tail = [], _event(_blocked(model, behaviour))
        case "malformed":
            tail = b'data: {"candidates": [{"content": {"parts": [{"te\r\n\r\n'
        case "unfinished":
            tail = b""
        case "error_event":
            tail = _event({"error": ERRORS["overloaded"]})
    return Stream(b"", pieces, tail, content_type="text/event-stream")


def _function_call(name: str, arguments: str) -> dict[str, Any]:
    return {"functionCall": {"name": name, "args": json.loads(arguments)}, "thoughtSignature": "c2lnbmF0dXJl"}


def _response(
    model: str, parts: list[dict[str, Any]], finish: str | None, behaviour: Behaviour, *, output: int | None = None
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish == "SAFETY":
        candidate = {"index": 0, "safetyRatings": [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "HIGH"}]}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate]} | _metadata(model, behaviour, output=output)


def _blocked(model: str, behaviour: Behaviour) -> dict[str, Any]:
    """What a prompt gets that the safety filters refuse: no candidates at all."""
    return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}} | _metadata(model, behaviour, output=0)


def _metadata(model: str, behaviour: Behaviour, *, output: int | None) -> dict[str, Any]:
    output = behaviour.counted_output if output is None else output
    usage: dict[str, Any] = {
        "promptTokenCount": behaviour.input_tokens,
        "candidatesTokenCount": output,
        "totalTokenCount": behaviour.input_tokens + output + behaviour.thinking_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": behaviour.input_tokens}],
    }
    if behaviour.thinking_tokens:
        usage["thoughtsTokenCount"] = behaviour.thinking_tokens
    fields: dict[str, Any] = {"modelVersion": model, "responseId": RESPONSE_ID}
    return {"usageMetadata": usage} | fields if behaviour.usage else fields


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\r\n\r\n"


@lru_cache(maxsize=256)
def _whole(model: str, behaviour: Behaviour) -> Whole:
    match behaviour.fault:
        case "empty":
            return Whole(json.dumps(_blocked(model, behaviour)).encode())
        case "malformed":
            return Whole(b'{"candidates": [{"cont')
    parts = [{"text": behaviour.answer}] if behaviour.answer else []
    parts += [_function_call(name, arguments) for name, arguments in behaviour.tool_calls]
    fields = _response(model, parts, FINISH_REASONS[behaviour.finish_reason], behaviour)
    return Whole(json.dumps(fields, indent=2).encode())


if __name__ == "__main__":
    run_forever(FakeGemini)
