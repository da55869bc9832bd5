"""What a provider's failure means, once for all providers. Of its own words only codes pass, never sentences."""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from services.agent.errors import (
    ContentFiltered,
    ContextTooLong,
    ProviderAuthFailed,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    RunError,
)

# A provider's sentence may quote the conversation or the key; its codes are words like unsupported_value.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,63}(\[\d{1,4}\][A-Za-z0-9_.]{0,40})?")
_TOO_LONG_CODES = {
    "context_length_exceeded",
    "exceed_context_size_error",
    "request_too_large",
    "string_above_max_length",
}
_TOO_LONG = re.compile(
    r"maximum context length|context window|prompt is too long|too many tokens|exceeds? the (available )?context"
    r"|input token count.*exceeds|reduce the length of the (messages|prompt)",
    re.IGNORECASE | re.DOTALL,
)
_FILTERED_CODES = {"content_policy_violation", "content_filter", "content_filtered", "data_inspection_failed"}
_NO_KEY_CODES = {"invalid_api_key", "API_KEY_INVALID", "authentication_error", "API_KEY_SERVICE_BLOCKED"}
# The operator's account at the provider is empty: asking again won't fill it.
_NO_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached"}


def of_status(
    provider: str, status: int, *, codes: tuple[str | None, ...] = (), message: str = "", headers: Mapping[str, str]
) -> RunError:
    """The error that an HTTP status and the body's codes stand for. The message is looked at and not passed on."""
    words = [code for code in dict.fromkeys(codes) if code and _WORD.fullmatch(code)]
    detail = f"{provider} answered {status} ({', '.join(words)})." if words else f"{provider} answered {status}."
    if status in (401, 403) or _NO_KEY_CODES.intersection(words):
        return ProviderAuthFailed(detail)
    if _FILTERED_CODES.intersection(words):
        return ContentFiltered(detail)
    if _TOO_LONG_CODES.intersection(words) or status == 413 or (status == 400 and _TOO_LONG.search(message)):
        return ContextTooLong(detail)
    if status == 429:
        error = ProviderRateLimited(detail, retry_after_seconds=retry_after_seconds(headers))
        return error.finally_failed() if _NO_QUOTA_CODES.intersection(words) else error
    if status >= 500:
        return ProviderUnavailable(detail, retry_after_seconds=retry_after_seconds(headers))
    return ProviderTimeout(detail) if status == 408 else ProviderRejected(detail)


def of_silence(provider: str) -> RunError:
    """No connection, no first byte or no next byte within the time allowed."""
    return ProviderTimeout(f"{provider} kept silent for too long.")


def of_break(provider: str) -> RunError:
    """The connection could not be made, or broke before the answer's end."""
    return ProviderUnavailable(f"The connection to {provider} failed.")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks to wait: a number of seconds or an HTTP date. None when it doesn't say."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
