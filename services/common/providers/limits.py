"""A lower output limit, where a provider refuses a request for its size."""

import re

from services.common.providers.refusals import TOKENS_PER_MINUTE, Refusal

MIN_OUTPUT_TOKENS = 256
# What is asked for instead where a provider does not say what would fit.
SMALL_OUTPUT_TOKENS = 1_024

_LIMIT_NAME = re.compile(r"max_(completion_|output_)?tokens|maxOutputTokens")
_HIGHEST = re.compile(
    r"(?:at most|maximum (?:value|of|is)[^0-9]{0,40}|less than or equal to|<=|supports? up to)\s*`?([0-9][0-9,]{0,11})"
)


def smaller_limit(refusal: Refusal, limit: int) -> int | None:
    """A lower output limit that the provider may take, if its refusal is about the size of the request or the limit.

    Groq counts the limit as used: "Limit 6000, Used 500, Requested 65572". Others name the highest limit they take.
    """
    smaller: int | None = None
    if refusal.status in (413, 429) and TOKENS_PER_MINUTE.search(refusal.message):
        allowed, used, requested = (_figure(refusal.message, word) for word in ("Limit", "Used", "Requested"))
        if allowed is None or requested is None:
            smaller = SMALL_OUTPUT_TOKENS
        else:
            smaller = limit - (requested + (used or 0) - allowed)
    elif _LIMIT_NAME.search(refusal.message) or _LIMIT_NAME.search(" ".join(refusal.params)):
        highest = _HIGHEST.search(refusal.message)
        smaller = int(highest[1].replace(",", "")) if highest else None
    return smaller if smaller is not None and MIN_OUTPUT_TOKENS <= smaller < limit else None


def _figure(message: str, word: str) -> int | None:
    found = re.search(rf"\b{word}:? ([0-9][0-9,]{{0,11}})", message)
    return int(found[1].replace(",", "")) if found else None
