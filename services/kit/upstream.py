"""What the failure of a provider's HTTP API means, and when its call is tried again: once for all that call one.

Of a provider's own words only codes pass, never sentences: those may quote what was sent, or the key.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from services.kit import telemetry
from services.kit.errors import DomainError, Kind
from services.kit.metrics import PROVIDER_SECONDS
from services.kit.telemetry import Span, SpanKind

T = TypeVar("T")

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,63}(\[\d{1,4}\][A-Za-z0-9_.]{0,40})?")
_FILTERED_CODES = {"content_policy_violation", "content_filter", "content_filtered"}
_NO_KEY_CODES = {"invalid_api_key", "API_KEY_INVALID", "authentication_error", "API_KEY_SERVICE_BLOCKED"}
# The operator's account at the provider is empty: asking again won't fill it.
_NO_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached"}


class UpstreamError(DomainError):
    """The provider failed. `retryable` says whether the same call may be tried again."""

    kind, retryable = Kind.UPSTREAM, False

    def __init__(self, detail: str | None = None, *, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        asked = {"retry_after_seconds": str(math.ceil(retry_after_seconds))} if retry_after_seconds else {}
        super().__init__(detail, **asked)


class ProviderUnavailable(UpstreamError):
    """The provider can't be reached, breaks off, or says that it is in trouble."""

    reason, detail, retryable = "PROVIDER_UNAVAILABLE", "The provider is not available.", True


class ProviderTimeout(UpstreamError):
    """The provider did not answer in the time that was left."""

    kind, reason, detail = Kind.TIMEOUT, "PROVIDER_TIMEOUT", "The provider did not answer in time."


class ProviderRateLimited(UpstreamError):
    """The provider asks for fewer calls."""

    kind, reason, retryable = Kind.UNAVAILABLE, "PROVIDER_RATE_LIMITED", True
    detail = "The provider limits the rate of calls."


class ProviderQuotaUsedUp(UpstreamError):
    """The operator's account at the provider has no quota left: to callers the same as a limited rate."""

    kind, reason, detail = Kind.UNAVAILABLE, "PROVIDER_RATE_LIMITED", "The provider's quota is used up."


class ProviderAuthFailed(UpstreamError):
    """The provider refuses the key."""

    reason, detail = "PROVIDER_AUTH_FAILED", "The provider does not accept the key it was given."


class ProviderRejected(UpstreamError):
    """The provider refuses the request: a model it doesn't have, a parameter it doesn't take."""

    reason, detail = "PROVIDER_REJECTED", "The provider refused the request."


class ProviderBadResponse(UpstreamError):
    """The provider's answer can't be understood."""

    reason, detail = "PROVIDER_BAD_RESPONSE", "The provider's answer could not be understood."


class ContentFiltered(UpstreamError):
    """The provider's safety system refused the content."""

    reason, detail = "CONTENT_FILTERED", "The provider's safety system refused the content."


def of_status(
    provider: str, status: int, *, codes: tuple[str | None, ...] = (), headers: Mapping[str, str]
) -> UpstreamError:
    """The error that an HTTP status and the body's codes stand for. `headers` have names in lower case."""
    words = [code for code in dict.fromkeys(codes) if code and _WORD.fullmatch(code)]
    detail = f"{provider} answered {status} ({', '.join(words)})." if words else f"{provider} answered {status}."
    if status in (401, 403) or _NO_KEY_CODES.intersection(words):
        return ProviderAuthFailed(detail)
    if _FILTERED_CODES.intersection(words):
        return ContentFiltered(detail)
    if _NO_QUOTA_CODES.intersection(words):
        return ProviderQuotaUsedUp(detail)
    if status == 429:
        return ProviderRateLimited(detail, retry_after_seconds=retry_after_seconds(headers))
    if status >= 500:
        return ProviderUnavailable(detail, retry_after_seconds=retry_after_seconds(headers))
    return ProviderTimeout(detail) if status == 408 else ProviderRejected(detail)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks to wait: a number of seconds or an HTTP date. None when it doesn't say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(http_date: str) -> float:
    try:
        return parsedate_to_datetime(http_date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return math.nan


@contextmanager
def provider_call(provider: str, model: str, operation: str, code_of: Callable[[Exception], str]) -> Iterator[Span]:
    """One try of a provider's call as a span, by OpenTelemetry's conventions for GenAI, and as a measurement.

    `code_of` says what an error is called. Neither shows what was asked or answered.
    """
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
    }
    code, began_at = "ok", time.perf_counter()
    with telemetry.span(f"{operation} {model}", SpanKind.CLIENT, attributes=attributes) as span:
        try:
            yield span
        except (asyncio.CancelledError, GeneratorExit):
            code = "cancelled"
            raise
        except Exception as error:
            code = code_of(error)
            telemetry.fail(span, code)
            raise
        finally:
            PROVIDER_SECONDS.labels(provider, code).observe(time.perf_counter() - began_at)


def expect_calls(providers: Iterable[str]) -> None:
    """Have a refused key counted from 0 on, so that the first one is an increase, which an alert can see."""
    for provider in providers:
        PROVIDER_SECONDS.labels(provider, "provider_auth_failed")


def code_of(error: Exception) -> str:
    """What a failed call is called in metrics and traces."""
    return error.reason.lower() if isinstance(error, DomainError) else type(error).__name__


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a provider's call is tried, and how long that waits. The SDKs' own retries are off."""

    tries: int = 3
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 20.0
    """A provider that asks for more than this is not asked again."""

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result; after the last try its UpstreamError."""
        for wait_seconds in self._waits():
            try:
                return await call()
            except UpstreamError as error:
                asked = error.retry_after_seconds or 0.0
                if not error.retryable or asked > self.longest_wait_seconds:
                    raise
            await asyncio.sleep(asked + wait_seconds)
        return await call()

    def _waits(self) -> Iterator[float]:
        """How long to wait before each further try, jittered and growing."""
        for tries in range(self.tries - 1):
            longest = min(self.longest_wait_seconds, self.first_wait_seconds * 2 ** (tries + 1))
            yield random.uniform(longest / 2, longest)
