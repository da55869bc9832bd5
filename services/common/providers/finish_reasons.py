"""What vendors call the end of an answer."""

import re

import structlog

from services.common.providers.errors import ProviderBadResponse, ProviderUnavailable

log = structlog.get_logger()

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,63}")
STOP, LENGTH, TOOL_CALLS, CONTENT_FILTER = "stop", "length", "tool_calls", "content_filter"
# Compared in lower case.
_MEANINGS = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"), STOP),
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens"), LENGTH),
    **dict.fromkeys(("tool_calls", "tool_use", "function_call"), TOOL_CALLS),
    **dict.fromkeys(
        (
            *("content_filter", "content_filtered", "refusal", "sensitive", "safety", "recitation", "blocklist"),
            *("prohibited_content", "spii", "image_safety", "image_prohibited_content", "language"),
        ),
        CONTENT_FILTER,
    ),
}
# The provider broke the answer off: what came is no answer.
_BROKEN_OFF = frozenset({"error", "abort", "aborted", "network_error", "insufficient_system_resource"})
# The model wrote a tool call that the provider could not read.
_SLIPS = frozenset({"malformed_function_call", "unexpected_tool_call", "too_many_tool_calls", "malformed_response"})


def meaning(provider: str, reason: str) -> str:
    """OpenAI's word for a finish reason; an unknown one as it is, with a line in the log.

    Raises ProviderUnavailable when the provider broke the answer off, ProviderBadResponse for a model's slip.
    """
    low = reason.lower()
    if low in _BROKEN_OFF:
        raise ProviderUnavailable(f"{provider} broke the answer off.")
    if low in _SLIPS:
        raise ProviderBadResponse("The model wrote a tool call that can't be read.", retryable=True)
    if (known := _MEANINGS.get(low)) is not None:
        return known
    is_word = _WORD.fullmatch(reason) is not None
    log.warning("unknown_finish_reason", provider=provider, reason=reason if is_word else "not_a_word")
    return reason if is_word else STOP
