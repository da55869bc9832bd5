"""Parameters that a model does not take: known for its family, or told by the provider's refusal."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from services.common.providers.errors import ProviderRejected
from services.common.providers.refusals import Refusal, meaning_of

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
