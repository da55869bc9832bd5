"""What a provider's failure means, and when its call is tried again."""

import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from services.kit import upstream
from services.kit.errors import Kind
from services.kit.upstream import ProviderRateLimited, ProviderUnavailable, Retries, UpstreamError, of_status

FAST = Retries(first_wait_seconds=0.001)


@pytest.mark.parametrize(
    ("status", "codes", "reason", "retryable"),
    [
        (401, ("invalid_api_key",), "PROVIDER_AUTH_FAILED", False),
        (403, (), "PROVIDER_AUTH_FAILED", False),
        (400, ("INVALID_ARGUMENT", "API_KEY_INVALID"), "PROVIDER_AUTH_FAILED", False),
        (404, ("model_not_found",), "PROVIDER_REJECTED", False),
        (400, ("content_policy_violation",), "CONTENT_FILTERED", False),
        (429, ("rate_limit_exceeded",), "PROVIDER_RATE_LIMITED", True),
        (429, ("insufficient_quota",), "PROVIDER_RATE_LIMITED", False),
        (408, (), "PROVIDER_TIMEOUT", False),
        (500, (), "PROVIDER_UNAVAILABLE", True),
        (503, ("UNAVAILABLE",), "PROVIDER_UNAVAILABLE", True),
    ],
)
def test_a_status_has_one_meaning(status: int, codes: tuple[str, ...], reason: str, retryable: bool) -> None:
    error = of_status("openai", status, codes=codes, headers={})
    assert (error.reason, error.retryable) == (reason, retryable)


def test_codes_pass_and_sentences_do_not() -> None:
    error = of_status("openai", 400, codes=("unsupported_value", "The key sk-secret is wrong", None), headers={})
    assert error.detail == "openai answered 400 (unsupported_value)."


@pytest.mark.parametrize(
    ("value", "seconds"), [("20", 20), ("0.5", 0.5), ("-1", 0), ("nan", None), ("inf", None), ("soon", None)]
)
def test_a_retry_after_in_seconds_is_read(value: str, seconds: float | None) -> None:
    assert upstream.retry_after_seconds({"retry-after": value}) == seconds


def test_a_retry_after_as_a_date_is_read() -> None:
    found = upstream.retry_after_seconds({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert found is not None
    assert 55 < found <= 60


def test_what_the_provider_asks_for_travels_in_whole_seconds() -> None:
    error = of_status("openai", 429, headers={"retry-after": "1.2"})
    assert error.metadata == {"retry_after_seconds": "2"}


class Provider:
    """Fails with each of these, then answers."""

    def __init__(self, *failures: UpstreamError) -> None:
        self._failures: Iterator[UpstreamError] = iter(failures)
        self.calls = 0

    async def call(self) -> str:
        self.calls += 1
        for failure in self._failures:
            raise failure
        return "answer"


async def test_a_passing_failure_is_tried_again() -> None:
    provider = Provider(ProviderUnavailable(), ProviderRateLimited(retry_after_seconds=0.01))
    assert await FAST.run(provider.call) == "answer"


async def test_the_third_failure_is_the_last() -> None:
    provider = Provider(*(ProviderUnavailable() for _ in range(9)))
    with pytest.raises(ProviderUnavailable):
        await FAST.run(provider.call)
    assert provider.calls == 3


@pytest.mark.parametrize(
    "failure", [upstream.ProviderAuthFailed(), upstream.ProviderTimeout(), ProviderRateLimited(retry_after_seconds=60)]
)
async def test_a_failure_that_lasts_is_not_tried_again(failure: UpstreamError) -> None:
    provider = Provider(failure)
    with pytest.raises(UpstreamError):
        await FAST.run(provider.call)
    assert provider.calls == 1


def test_every_failure_of_a_provider_is_a_gateway_error() -> None:
    kinds = {kind.kind for kind in UpstreamError.__subclasses__()}
    assert kinds == {Kind.UPSTREAM, Kind.TIMEOUT, Kind.UNAVAILABLE}
