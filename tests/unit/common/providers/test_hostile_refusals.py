"""Refusals of any shape: they are read, in bounded time, and mean an error of the provider."""

import time
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.agent.providers.parameters import refused_by
from services.common.providers.errors import ProviderError
from services.common.providers.event_stream import EventStreamDecoder
from services.common.providers.limits import smaller_limit
from services.common.providers.refusals import Refusal, in_stream, meaning_of, read_refusal, retry_after_seconds

SAME = settings(
    derandomize=True, database=None, deadline=None, max_examples=300, suppress_health_check=list(HealthCheck)
)
NAMES = ("temperature", "top_p", "frequency_penalty", "stop", "seed", "response_format", "logit_bias", "user")
SECONDS = 1.0
MIB = 1024 * 1024

words = st.sampled_from(
    (
        *("max_tokens", "at most ", "maximum of ", ",", "9" * 5_000, "Limit ", "Requested ", "tokens per min", "TPM"),
        *("temperature", "'stop'", "both", "penalty", "context", "exceed", "\0", "\ud83d", "[", "{", "500", " ", "\n"),
    )
)
texts = st.one_of(st.lists(words, max_size=8).map("".join), st.text(max_size=20))
fields = st.sampled_from(
    (
        *(
            "error",
            "errors",
            "detail",
            "details",
            "metadata",
            "message",
            "raw",
            "code",
            "type",
            "status",
            "param",
            "loc",
        ),
        *("retryDelay", "status_code", "http_status", "object", "error_code", "choices", "innererror"),
    )
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=12,
)
headers = st.dictionaries(st.sampled_from(("Retry-After", "retry-after-ms", "x")), texts | st.text(max_size=40))


def everything(refusal: Refusal) -> None:
    """Put a refusal to all uses."""
    assert isinstance(meaning_of("openai", refusal), ProviderError)
    refused_by(refusal, NAMES)
    smaller = smaller_limit(refusal, 65_536)
    assert smaller is None or 0 < smaller < 65_536


@SAME
@given(st.integers(100, 999), values, headers)
def test_a_refusal_of_any_json_is_read(status: int, body: Any, headers: dict[str, str]) -> None:
    document = body if isinstance(body, dict | list) else {"error": body}
    everything(read_refusal(status, document, headers))
    if isinstance(document, dict) and (refusal := in_stream(document)) is not None:
        everything(refusal)


@SAME
@given(st.integers(100, 999), st.binary(max_size=200), headers)
def test_a_refusal_of_any_bytes_is_read(status: int, body: bytes, headers: dict[str, str]) -> None:
    everything(read_refusal(status, body, headers))


@SAME
@given(st.dictionaries(st.sampled_from(("retry-after", "retry-after-ms")), st.text(max_size=40)))
def test_any_header_asks_for_a_bounded_wait_or_for_none(headers: dict[str, str]) -> None:
    seconds = retry_after_seconds(headers)
    assert seconds is None or 0 <= seconds <= 86_400


@SAME
@given(texts, st.sampled_from((400, 413, 429)))
def test_any_message_is_searched_for_a_limit(message: str, status: int) -> None:
    everything(Refusal(status, message=message))


@pytest.mark.parametrize(
    "document",
    [
        {"error": {"code": "9" * 5_000}},
        {"error": {"retryDelay": [[]]}},
        {"error": {"retryDelay": 10**4_000}},
        {"error": {"message": "max_tokens must be at most ,"}},
        {"error": {"message": "max_tokens must be at most " + "9" * 5_000}},
        {"error": {"message": "tokens per min: Limit ,, Requested ,"}},
    ],
    ids=["code", "delay", "large-delay", "comma", "digits", "figures"],
)
def test_figures_that_are_none_are_passed_over(document: dict[str, Any]) -> None:
    refusal = in_stream(document)
    assert refusal is not None
    everything(refusal)
    everything(read_refusal(413, document, {}))


def test_a_delay_nested_too_deep_is_passed_over() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    everything(read_refusal(429, {"error": {"retryDelay": value}}, {}))


SLOW_WORDS = (
    *("a", "violat", "exceed", "exceed ", "violates of ", "more than ", "input token ", "blocked by ", "model ", "'"),
    *("no access to ", "region ", "context length ", "content-filter", "maximum of ", "temperature ", "prompt ", "\n"),
    *(
        "length ",
        "[",
        '{"',
        "the ",
        "reduce the length of the ",
        "\\",
        "9",
        "9,",
        "Limit ",
        "too many input ",
        "message ",
    ),
)


@pytest.mark.parametrize("word", SLOW_WORDS)
def test_a_long_message_is_searched_in_bounded_time(word: str) -> None:
    message = word * (MIB // len(word))
    body = orjson.dumps({"error": {"message": message, "code": message, "param": message}})
    began_at = time.process_time()
    everything(read_refusal(400, body, {}))
    everything(read_refusal(429, message.encode(), {}))
    everything(read_refusal(200, {"error": {"message": "max_tokens " + message}}, {}))
    assert time.process_time() - began_at < SECONDS


def test_many_data_lines_in_one_event_are_read_in_bounded_time() -> None:
    decoder = EventStreamDecoder()
    piece = b"data:\n" * 1_000
    began_at = time.process_time()
    for _ in range(1_000):
        assert not list(decoder.feed(piece))
    assert time.process_time() - began_at < 5 * SECONDS


def test_the_last_line_of_a_marked_stream_needs_no_end() -> None:
    decoder = EventStreamDecoder()
    assert not list(decoder.feed(b"\xef\xbb\xbfdata: one"))
    assert list(decoder.end()) == [b"one"]
