"""Outcomes of a translation that a caller may act on; the reasons are those of translate.proto's TranslateReason.

What fails at the provider is in services.common.providers.errors.
"""

from services.kit.errors import DomainError, Kind


class LanguageUnknown(DomainError):
    """A language is no registered tag of BCP 47, or none that a text can be written in. Metadata: `field`."""

    kind, reason, detail = Kind.INVALID, "LANGUAGE_UNKNOWN", "The language is not known."


class InsufficientCredits(DomainError):
    """What the workspace has available bought the beginning of the translation and not its end."""

    kind, reason, detail = Kind.PRECONDITION, "INSUFFICIENT_CREDITS", "The workspace has too few credits available."
