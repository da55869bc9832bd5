"""What a translation is made of, and its rules. Pure: no clock, no wire."""

from dataclasses import dataclass
from typing import Self

from services.kit.errors import InvalidArgument
from services.kit.tokens import estimate_tokens
from services.translate.errors import LanguageUnknown
from services.translate.languages import find_language

MAX_TEXT_CHARACTERS = 5_000
TOKENS_PER_CHARACTER = 6
"""No language in use needs more for what one character of another says."""
SPARE_TOKENS = 4_096
"""Room for a model that thinks before it answers, and for the JSON around the answer."""


@dataclass(frozen=True, slots=True)
class Job:
    """A text to translate. Languages are canonical tags; without a source it is detected."""

    text: str
    target: str
    source: str | None

    @classmethod
    def parse(cls, *, text: str, target: str, source: str) -> Self:
        """Of what a caller asks for; an empty source is none."""
        if not 1 <= len(text) <= MAX_TEXT_CHARACTERS or not text.strip():
            detail = f"text must have 1 to {MAX_TEXT_CHARACTERS} characters and must not be blank."
            raise InvalidArgument(detail, field="text")
        return cls(text, _language("target", target), _language("source", source) if source else None)

    @property
    def output_tokens(self) -> int:
        """The longest answer that makes sense: what is beyond it is a model that does not find its end."""
        return SPARE_TOKENS + TOKENS_PER_CHARACTER * len(self.text)


def _language(field: str, text: str) -> str:
    tag = find_language(text)
    if tag is None:
        raise LanguageUnknown(f"{field} must be a language tag of BCP 47, such as de or pt-BR.", field=field)
    return tag


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens consumed; thinking is output. Estimated when the provider told none."""

    input_tokens: int
    output_tokens: int
    estimated: bool = False

    @classmethod
    def estimate(cls, *, sent: str, received: str) -> Self:
        """From the sizes of what went there and back."""
        return cls(estimate_tokens(len(sent.encode())), estimate_tokens(len(received.encode())), estimated=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider makes of a job. The source is its own claim."""

    translated_text: str
    source: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Translation:
    """A job done."""

    translated_text: str
    source: str
    target: str
    provider: str
    model: str
