"""Ways in which an answer goes wrong. Each takes its chances from a seeded generator, so that it can be repeated."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

_DATA = re.compile(rb"data: ?(\{.*\})")
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, 2**64, -(2**70), 10**30, 1e308),
    *("", "\0", " ", "null", "NaN", "\ud83d", "\ude00", "\ud83d\ude00", "9" * 5_000, "a" * 3_000, "ünïcödé"),
    *([], {}, [None], [[]], [{}], {"": None}, {"error": None}, {"text": "x"}, [{"type": "text", "text": "y"}]),
)
_NOISE = (
    *(b": comment\n\n", b"data:\n\n", b"data: null\n\n", b"data: : keepalive\n\n", b"event: x\n", b"id: 1\n"),
    *(b"retry: 5\n\n", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b'data: {"type":"ping"}\n\n', b"data: [DONE]\n\n"),
    *(b"data: []\n\n", b"data: 1\n\n", b"data: NaN\n\n", b"\0", b"\xff\xfe", b"data", b"data: {", b"<html>", b"  "),
    *(
        b'data: {"error":{}}\n\n',
        b'data: {"error":"x"}\n\n',
        b'data: {"detail":1}\n\n',
        b"data: " + b"[" * 2_000 + b"\n\n",
    ),
)
_FIELDS = (
    *(
        "index",
        "id",
        "content",
        "role",
        "usage",
        "finish_reason",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "error",
    ),
    *("parts", "text", "args", "thought", "functionCall", "thoughtSignature", "finishReason", "candidates", "choices"),
    *("delta", "message", "refusal", "reasoning", "promptFeedback", "usageMetadata", "code", "status", "retryDelay"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "promptTokenCount", "candidatesTokenCount"),
)


def mutated(chance: random.Random, body: bytes) -> bytes:
    """The body after one to four changes, most of them behind its start; now and then something else altogether."""
    if chance.random() < 0.02:
        return chance.randbytes(chance.randrange(2_000))
    for _ in range(chance.randint(1, 4)):
        body = chance.choice(MUTATIONS)(chance, body)
    return body


def pieces_of(chance: random.Random, body: bytes) -> list[bytes]:
    """The body cut at random places."""
    cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.choice((0, 1, 3, 12))))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def _place(chance: random.Random, body: bytes) -> int:
    """A place, rather towards the end, so that most answers still begin well."""
    return int(len(body) * (1 - chance.random() ** 2))


def _flip_bytes(chance: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        if changed:
            changed[min(_place(chance, body), len(changed) - 1)] = chance.randrange(256)
    return bytes(changed)


def _cut(chance: random.Random, body: bytes) -> bytes:
    return body[: _place(chance, body)]


def _remove(chance: random.Random, body: bytes) -> bytes:
    start = _place(chance, body)
    return body[:start] + body[start + chance.randint(1, 40) :]


def _repeat(chance: random.Random, body: bytes) -> bytes:
    start = _place(chance, body)
    piece = body[start : start + chance.randint(1, 400)]
    return body[:start] + piece * chance.randint(2, 5) + body[start:]


def _add_noise(chance: random.Random, body: bytes) -> bytes:
    start = _place(chance, body)
    if chance.random() < 0.7:  # between two lines, as proxies do
        start = body.find(b"\n", start) + 1 or len(body)
    return body[:start] + chance.choice(_NOISE) + body[start:]


def _change_line_ends(chance: random.Random, body: bytes) -> bytes:
    return body.replace(b"\n", chance.choice((b"\r", b"\r\n", b"\n\n", b"\n\r")))


def _change_json(chance: random.Random, body: bytes) -> bytes:
    """Put an odd value somewhere into an event's JSON."""
    events = list(_DATA.finditer(body))
    if not events:
        return body
    event = events[int(len(events) * chance.random())]
    try:
        document = json.loads(event[1])
        _change_value(chance, document)
        text = json.dumps(document, ensure_ascii=chance.random() < 0.9).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # what an earlier change has broken or nested too deep
        return body
    return body[: event.start(1)] + text + body[event.end(1) :]


def _change_value(chance: random.Random, document: Any) -> None:
    """Walk down at random; change or add a value on the way."""
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        inner = [key for key in keys if isinstance(document[key], dict | list) and document[key]]
        if inner and chance.random() < 0.75:
            document = document[chance.choice(inner)]
            continue
        value = _odd_value(chance)
        if isinstance(document, dict):
            document[chance.choice(_FIELDS) if not keys or chance.random() < 0.3 else chance.choice(keys)] = value
        elif keys and chance.random() < 0.5:
            document[chance.choice(keys)] = value
        else:
            document.append(value)
        return


def _odd_value(chance: random.Random) -> Any:
    if chance.random() < 0.03:
        value: Any = 1
        for _ in range(chance.choice((20, 300, 900))):
            value = [value] if chance.random() < 0.5 else {"a": value}
        return value
    return chance.choice(_ODD)


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip_bytes,
    _cut,
    _remove,
    _repeat,
    _add_noise,
    _add_noise,
    _change_line_ends,
    _change_json,
    _change_json,
    _change_json,
    _change_json,
)
