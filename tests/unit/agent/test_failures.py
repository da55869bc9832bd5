"""What a provider's failure means."""

from email.utils import formatdate
from time import time

import pytest

from services.agent.providers import failures


@pytest.mark.parametrize(
    ("status", "codes", "message", "code"),
    [
        (400, (), "This model's maximum context length is 8192 tokens.", "context_too_long"),
        (400, (), "prompt is too long: 200001 tokens > 200000 maximum", "context_too_long"),
        (413, (), "", "context_too_long"),
        (400, ("invalid_request_error",), "something else", "provider_rejected"),
        (402, (), "Insufficient Balance", "provider_rejected"),
        (403, (), "", "provider_auth_failed"),
        (408, (), "", "provider_timeout"),
        (429, ("content_filter",), "", "content_filtered"),
        (529, ("overloaded_error",), "", "provider_unavailable"),
    ],
)
def test_a_status_and_its_codes_have_a_meaning(status: int, codes: tuple[str, ...], message: str, code: str) -> None:
    assert failures.of_status("anthropic", status, codes=codes, message=message, headers={}).code == code


def test_only_words_of_the_provider_are_told_never_sentences() -> None:
    error = failures.of_status(
        "openai",
        400,
        codes=("what the user wrote", "sk-key with spaces", "messages[12].content", "invalid_value", None, ""),
        message="what the user wrote",
        headers={},
    )
    assert error.detail == "openai answered 400 (messages[12].content, invalid_value)."


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", None), ("", None)])
def test_retry_after_is_seconds(value: str, seconds: float | None) -> None:
    assert failures.retry_after_seconds({"retry-after": value}) == seconds


def test_retry_after_may_be_a_date() -> None:
    seconds = failures.retry_after_seconds({"retry-after": formatdate(time() + 60, usegmt=True)})
    assert seconds == pytest.approx(60, abs=2)
