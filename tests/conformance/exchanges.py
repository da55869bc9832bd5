"""Answers in the shapes that vendors document, written by hand, and what each of them says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPENAI, GOOGLE = "openai", "google"
PARIS = "The capital of France is Paris."
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One answer, and what it says."""

    id: str
    vendor: str
    body: bytes
    text: str = ""
    finish: str = "stop"
    usage: tuple[int, int] | None = (12, 7)
    """Input and output tokens; None where they are estimated."""
    calls: tuple[tuple[str, Any], ...] = ()
    """Name and parsed arguments of each tool call."""
    code: str = ""
    """Of the error that it is."""
    status: int = 200
    content_type: str = "text/event-stream"
    sdk_reads: bool = True
    """False where the vendor's SDK fails on it, or reads something else than it says."""


def _event(fields: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def _chunk(delta: Mapping[str, Any] | None, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    choices = [] if delta is None else [choice]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "a-model"}
    return _event({**head, "choices": choices, **fields})


def _text(*pieces: str) -> bytes:
    return b"".join(_chunk({"content": piece}) for piece in pieces)


START = _chunk({"role": "assistant", "content": ""})
WORDS = _text("The capital ", "of France ", "is Paris.")
STOP = _chunk({}, "stop")
TOTAL = _chunk(None, usage=USAGE)


def _call(index: int, id: str, name: str, *arguments: str) -> bytes:
    first = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
    return b"".join(_chunk({"tool_calls": [piece]}) for piece in (first, *rest))


def _gemini(
    *parts: Mapping[str, Any], finish: str = "", usage: Mapping[str, int] | None = None, **fields: Any
) -> bytes:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    counts = usage or {"promptTokenCount": 12, "candidatesTokenCount": 7, "totalTokenCount": 19}
    return _event({"candidates": [candidate], "usageMetadata": counts, "modelVersion": "gemini", **fields})


def _blocked(reason: str) -> bytes:
    return _event({"promptFeedback": {"blockReason": reason}, "usageMetadata": {"promptTokenCount": 12}})


_WEATHER = ("weather", {"city": "Paris"})
_TIME = ("time", {"zone": "CET"})
_COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "a-model",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": PARIS}, "finish_reason": "stop"}],
    "usage": USAGE,
}
_AZURE_PROMPT = _event(
    {
        "id": "",
        "object": "",
        "created": 0,
        "model": "",
        "choices": [],
        "prompt_filter_results": [
            {"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
        ],
    }
)
_PERPLEXITY = b"".join(
    _event(
        {
            "id": "p",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "sonar",
            "choices": [
                {
                    "index": 0,
                    "delta": {"role": "assistant", "content": piece},
                    "message": {"role": "assistant", "content": so_far},
                    "finish_reason": finish,
                }
            ],
            "usage": USAGE,
        }
    )
    for piece, so_far, finish in (
        ("The capital ", "The capital ", None),
        ("of France is ", "The capital of France is ", None),
        ("Paris.", PARIS, "stop"),
    )
)

EXCHANGES = (
    Exchange("openai-text", OPENAI, START + WORDS + STOP + TOTAL + DONE, PARIS),
    Exchange("openai-multi-byte-text", OPENAI, _text("Grüße, ", "世界 ", "😀") + STOP + TOTAL + DONE, "Grüße, 世界 😀"),
    Exchange("openai-refusal", OPENAI, _chunk({"refusal": "I can't."}) + STOP + TOTAL + DONE, "I can't."),
    Exchange("openai-length", OPENAI, WORDS + _chunk({}, "length") + TOTAL + DONE, PARIS, "length"),
    Exchange(
        "openai-tool-call-in-pieces",
        OPENAI,
        _call(0, "call_1", "weather", '{"ci', 'ty":"Pa', 'ris"}') + _chunk({}, "tool_calls") + TOTAL + DONE,
        calls=(_WEATHER,),
    ),
    Exchange(
        "openai-parallel-tool-calls",
        OPENAI,
        _call(0, "call_1", "weather", '{"city":"Paris"}')
        + _call(1, "call_2", "time", '{"zone":"CET"}')
        + _chunk({}, "tool_calls")
        + TOTAL
        + DONE,
        calls=(_WEATHER, _TIME),
    ),
    Exchange("openai-content-filter", OPENAI, WORDS + _chunk({}, "content_filter") + DONE, code="content_filtered"),
    Exchange(
        "openai-error-in-stream",
        OPENAI,
        START + _event({"error": {"message": "The server had an error.", "type": "server_error", "code": None}}),
        code="provider_unavailable",
        sdk_reads=False,
    ),
    Exchange(
        "openai-whole-completion",
        OPENAI,
        json.dumps(_COMPLETION).encode(),
        PARIS,
        content_type="application/json",
        sdk_reads=False,
    ),
    Exchange("openai-no-usage", OPENAI, WORDS + STOP + DONE, PARIS, usage=None),
    Exchange("openai-cut-off", OPENAI, WORDS, code="provider_unavailable", sdk_reads=False),
    Exchange(
        "groq-x-groq",
        OPENAI,
        _chunk({"role": "assistant", "content": ""}, x_groq={"id": "req_1"})
        + WORDS
        + _chunk({}, "stop", usage=USAGE, x_groq={"id": "req_1", "usage": USAGE})
        + DONE,
        PARIS,
    ),
    Exchange(
        "groq-tool-use-failed",
        OPENAI,
        b"event: error\n"
        + _event(
            {
                "error": {
                    "message": "Failed to call a function. Please adjust your prompt.",
                    "type": "invalid_request_error",
                    "code": "tool_use_failed",
                    "failed_generation": "<function=weather>",
                    "status_code": 400,
                }
            }
        ),
        code="provider_bad_response",
        sdk_reads=False,
    ),
    Exchange(
        "deepseek-reasoning",
        OPENAI,
        _chunk({"role": "assistant", "content": None, "reasoning_content": "Easy. "})
        + _chunk({"content": None, "reasoning_content": "Paris."})
        + WORDS
        + _chunk({"content": ""}, "stop", usage=USAGE)
        + DONE,
        PARIS,
    ),
    Exchange(
        "deepseek-keep-alive",
        OPENAI,
        b": keep-alive\n\n: keep-alive\n\n" + WORDS + b": keep-alive\n\n" + STOP + TOTAL + DONE,
        PARIS,
    ),
    Exchange(
        "mistral-content-parts",
        OPENAI,
        _chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Easy."}]}]})
        + _chunk({"content": [{"type": "text", "text": "The capital of France "}]})
        + _text("is Paris.")
        + _chunk({"content": ""}, "stop", usage=USAGE)
        + DONE,
        PARIS,
        sdk_reads=False,
    ),
    Exchange(
        "mistral-model-length",
        OPENAI,
        WORDS + _chunk({"content": ""}, "model_length", usage=USAGE) + DONE,
        PARIS,
        "length",
        sdk_reads=False,
    ),
    Exchange(
        "openrouter-processing",
        OPENAI,
        b": OPENROUTER PROCESSING\n\n" * 3 + WORDS + STOP + TOTAL + DONE,
        PARIS,
    ),
    Exchange(
        "openrouter-error",
        OPENAI,
        _event(
            {
                "id": "gen-1",
                "object": "chat.completion.chunk",
                "error": {"code": 502, "message": "Provider disconnected"},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            }
        ),
        code="provider_unavailable",
        sdk_reads=False,
    ),
    Exchange(
        "openrouter-error-finish",
        OPENAI,
        WORDS + _chunk({}, "error") + DONE,
        code="provider_unavailable",
        sdk_reads=False,
    ),
    Exchange(
        "xai-thinking-in-the-total",
        OPENAI,
        WORDS + STOP + _chunk(None, usage={"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 119}) + DONE,
        PARIS,
        usage=(12, 107),
        sdk_reads=False,
    ),
    Exchange("perplexity-message-and-delta", OPENAI, _PERPLEXITY + DONE, PARIS),
    Exchange(
        "vllm-usage-in-each-chunk",
        OPENAI,
        b"".join(
            _chunk(
                {"content": piece}, usage={"prompt_tokens": 12, "completion_tokens": done, "total_tokens": 12 + done}
            )
            for done, piece in ((3, "The capital "), (5, "of France is "), (7, "Paris."))
        )
        + _chunk({"content": ""}, "stop", usage=USAGE)
        + TOTAL
        + DONE,
        PARIS,
    ),
    Exchange(
        "llama-cpp-timings",
        OPENAI,
        WORDS + STOP + _chunk(None, usage=USAGE, timings={"prompt_n": 12, "predicted_ms": 9.5}) + DONE,
        PARIS,
    ),
    Exchange(
        "llama-cpp-context",
        OPENAI,
        _event(
            {
                "error": {
                    "code": 400,
                    "message": "the request exceeds the available context size, try increasing it",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 5000,
                    "n_ctx": 4096,
                }
            }
        ),
        code="context_too_long",
        sdk_reads=False,
    ),
    Exchange(
        "ollama-whole-tool-call",
        OPENAI,
        _chunk(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "index": 0,
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
                    }
                ],
            }
        )
        + _chunk({"role": "assistant", "content": ""}, "tool_calls")
        + TOTAL
        + DONE,
        calls=(_WEATHER,),
    ),
    Exchange(
        "ollama-thinking",
        OPENAI,
        _chunk({"role": "assistant", "content": "", "reasoning": "Easy."}) + WORDS + STOP + TOTAL + DONE,
        PARIS,
    ),
    Exchange("azure-prompt-filter-results", OPENAI, _AZURE_PROMPT + START + WORDS + STOP + TOTAL + DONE, PARIS),
    Exchange("done-without-a-reason", OPENAI, WORDS + TOTAL + DONE, PARIS, sdk_reads=False),
    Exchange("crlf-line-ends", OPENAI, (WORDS + STOP + TOTAL + DONE).replace(b"\n", b"\r\n"), PARIS),
    Exchange(
        "gemini-text",
        GOOGLE,
        _gemini({"text": "The capital "})
        + _gemini({"text": "of France is "})
        + _gemini({"text": "Paris."}, finish="STOP"),
        PARIS,
    ),
    Exchange(
        "gemini-thoughts",
        GOOGLE,
        _gemini({"text": "Easy.", "thought": True})
        + _gemini(
            {"text": PARIS},
            finish="STOP",
            usage={"promptTokenCount": 12, "candidatesTokenCount": 7, "thoughtsTokenCount": 30, "totalTokenCount": 49},
        ),
        PARIS,
        usage=(12, 37),
    ),
    Exchange(
        "gemini-function-call",
        GOOGLE,
        _gemini(
            {"functionCall": {"name": "weather", "args": {"city": "Paris"}}, "thoughtSignature": "c2lnbmF0dXJl"},
            finish="STOP",
        ),
        calls=(_WEATHER,),
    ),
    Exchange(
        "gemini-parallel-function-calls",
        GOOGLE,
        _gemini({"functionCall": {"name": "weather", "args": {"city": "Paris"}}, "thoughtSignature": "c2lnbmF0dXJl"})
        + _gemini({"functionCall": {"name": "time", "args": {"zone": "CET"}}})
        + _gemini({"text": ""}, finish="STOP"),
        calls=(_WEATHER, _TIME),
    ),
    Exchange("gemini-max-tokens", GOOGLE, _gemini({"text": PARIS}, finish="MAX_TOKENS"), PARIS, "length"),
    Exchange("gemini-safety", GOOGLE, _gemini({"text": "The"}, finish="SAFETY"), code="content_filtered"),
    Exchange("gemini-prompt-feedback", GOOGLE, _blocked("PROHIBITED_CONTENT"), code="content_filtered"),
    Exchange(
        "gemini-malformed-function-call",
        GOOGLE,
        _event({"candidates": [{"index": 0, "finishReason": "MALFORMED_FUNCTION_CALL"}]}),
        code="provider_bad_response",
    ),
    Exchange(
        "gemini-error-in-stream",
        GOOGLE,
        _event({"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}),
        code="provider_unavailable",
        sdk_reads=False,
    ),
    Exchange(
        "gemini-comment",
        GOOGLE,
        b": keep-alive\n\nevent: message\n" + _gemini({"text": PARIS}, finish="STOP") + DONE,
        PARIS,
        sdk_reads=False,
    ),
)
