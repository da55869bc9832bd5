"""Parameters that a model does not take: known for its family, or told by the provider's refusal."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from services.common.providers.errors import ProviderRejected
from services.common.providers.refusals import TOKENS_PER_MINUTE, Refusal, meaning_of

MIN_OUTPUT_TOKENS = 256
# What is asked for instead where a provider does not say what would fit.
SMALL_OUTPUT_TOKENS = 1_024

SAMPLING = frozenset({"temperature", "top_p", "top_k"})
PENALTIES = frozenset({"frequency_penalty", "presence_penalty"})
LOGPROBS = frozenset({"logprobs", "top_logprobs", "logit_bias"})


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one provider, and the parameters that they refuse or ignore."""

    provider: str
    name: str
    """The models as people name them."""
    models: re.Pattern[str]
    refused: frozenset[str]
    exclusive: tuple[str, str] | None = None
    """Two of which only the first may be sent."""


def _family(
    provider: str, name: str, models: str, refused: Collection[str], exclusive: tuple[str, str] | None = None
) -> Family:
    return Family(provider, name, re.compile(models), frozenset(refused), exclusive)


# From the vendors' documentation; docs/providers.md shows it. Models that are not listed are asked, and the refusal is
# read. GPT-5.1 and later take sampling parameters when they do not reason, which is their default.
_REASONING = SAMPLING | PENALTIES | LOGPROBS | {"stop"}
FAMILIES: tuple[Family, ...] = (
    _family("openai", "o1, o3, o4 and their variants", r"o\d", _REASONING),
    _family(
        "openai",
        "gpt-5, -mini, -nano, -pro, -codex (not gpt-5-chat, not 5.1 and later)",
        r"gpt-5(?!-chat)(-(mini|nano|pro|codex)\b|-\d{4}|$)",
        _REASONING,
    ),
    _family("anthropic", "all", r"claude", PENALTIES),
    _family(
        "anthropic",
        "Claude Opus 4.7 and 4.8, Opus 5, Fable 5 and their successors",
        r"claude-opus-4-[78]|claude-(opus|fable)-5",
        SAMPLING,
    ),
    _family(
        "anthropic",
        "Claude Opus 4.1 to 4.6, Sonnet and Haiku from 4.5 on",
        r"claude-opus-4-[1-6]|claude-(sonnet|haiku)-4-[5-9]",
        (),
        exclusive=("temperature", "top_p"),
    ),
    _family("groq", "all", r"", LOGPROBS),
)


def refused_by_family(provider: str, model: str, names: Collection[str]) -> frozenset[str]:
    """Which of these parameters the model is known not to take."""
    found: set[str] = set()
    for family in FAMILIES:
        if family.provider == provider and family.models.match(model):
            found |= family.refused.intersection(names)
            if family.exclusive and set(family.exclusive) <= set(names):
                found.add(family.exclusive[1])
    return frozenset(found)


def refused_by(refusal: Refusal, names: Collection[str]) -> frozenset[str]:
    """Which of these parameters the provider refuses: by its own field, else by the first name in its message."""
    if not isinstance(meaning_of("", refusal), ProviderRejected):
        return frozenset()
    named = frozenset(refusal.params).intersection(names)
    if named:
        return named
    found = list(_named(refusal.message, names))
    if not found and re.search(r"\bpenalty\b", refusal.message, re.IGNORECASE):
        return PENALTIES.intersection(names)
    if len(found) > 1 and re.search(r"\bboth\b", refusal.message):
        return frozenset(found[-1:])
    return frozenset(found[:1])


def _named(message: str, names: Collection[str]) -> Iterator[str]:
    """The names in the message, in their order. A name that is a common word counts in quotation marks only."""
    places: dict[str, int] = {}
    for name in names:
        spellings = {name, _camel(name), name.replace("_", " ")}
        words = "|".join(sorted(map(re.escape, spellings), key=len, reverse=True))
        marked = rf"['\"`]({words})['\"`]|(parameter|argument|field):? ({words})\b|: ({words})$"
        pattern = rf"(?<![\w-])({words})(?![\w-])" if "_" in name or name == "temperature" else marked
        if found := re.search(pattern, message, re.IGNORECASE | re.MULTILINE):
            places[name] = found.start()
    yield from sorted(places, key=places.__getitem__)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


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
    elif re.search(r"max_(completion_|output_)?tokens", refusal.message) or "max_tokens" in refusal.params:
        highest = re.search(
            r"(?:at most|maximum (?:value|of|is)[^0-9]{0,40}|less than or equal to|<=|supports? up to)"
            r"\s*`?([0-9][0-9,]{0,11})",
            refusal.message,
        )
        smaller = int(highest[1].replace(",", "")) if highest else None
    return smaller if smaller is not None and MIN_OUTPUT_TOKENS <= smaller < limit else None


def _figure(message: str, word: str) -> int | None:
    found = re.search(rf"\b{word}:? ([0-9][0-9,]{{0,11}})", message)
    return int(found[1].replace(",", "")) if found else None
