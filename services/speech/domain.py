"""What a transcription is made of, and its rules. Pure: no clock, no wire."""

from dataclasses import dataclass
from typing import NewType, Self
from uuid import UUID, uuid5

from services.speech.errors import AudioTooLong, AudioTooShort, LanguageUnsupported
from services.speech.languages import to_language

HoldId = NewType("HoldId", UUID)

MAX_BYTES = 25 * 1024 * 1024
"""The largest file that OpenAI takes."""
MIN_SECONDS = 0.1
"""The shortest sound that OpenAI takes."""
MAX_HOLDS = 20
"""How often one request may be begun anew after it was given up."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for. `hold_id` names the request: repeated under it, it is charged once."""

    hold_id: HoldId
    language: str = ""
    may_repeat: bool = False
    """Whether the request may come again, so that its answer is worth keeping."""

    @classmethod
    def parse(cls, *, hold_id: UUID, language: str, may_repeat: bool) -> Self:
        """Of what a caller asks for; LanguageUnknown for what is no code."""
        return cls(HoldId(hold_id), to_language(language), may_repeat)

    def numbered_hold(self, number: int) -> HoldId:
        """The request's holds in order: a hold that was given back is over, so whoever begins anew takes the next."""
        return HoldId(uuid5(self.hold_id, str(number))) if number else self.hold_id


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a provider takes."""

    max_seconds: float
    languages: frozenset[str] | None = None
    """Any, when None."""

    def check_language(self, language: str) -> None:
        """LanguageUnsupported for one that the provider does not recognise; none is never wrong."""
        if language and self.languages is not None and language not in self.languages:
            raise LanguageUnsupported(field="language")

    def check_length(self, seconds: float) -> None:
        """AudioTooShort or AudioTooLong."""
        if seconds < MIN_SECONDS:
            raise AudioTooShort
        if seconds > self.max_seconds:
            raise AudioTooLong(
                f"The audio is longer than {self.max_seconds:g} seconds.", max_seconds=f"{self.max_seconds:g}"
            )


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a provider has heard. `language` is a code, "" when the provider does not tell."""

    text: str
    language: str


@dataclass(frozen=True, slots=True)
class Paid:
    """A transcript, and what was paid for it."""

    transcript: Transcript
    seconds: float
    charged_nano: int
