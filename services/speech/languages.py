"""ISO 639-1 codes: what callers may ask for, and what providers say that they have heard."""

import langcodes

from services.kit.text import replace_unstorable
from services.speech.errors import LanguageUnknown

CODE_LETTERS = 2


def to_language(code: str) -> str:
    """The code in lower case, "" for none. LanguageUnknown for what ISO 639-1 does not list."""
    lower = code.lower()
    if code and not _is_code(lower):
        raise LanguageUnknown(field="language")
    return lower


def heard_language(said: str) -> str:
    """The code of what a provider calls a language by its code or, as Whisper does, its English name; "" if unknown."""
    # langcodes raises SystemError for text with NUL.
    lower = replace_unstorable(said).strip().lower()
    if _is_code(lower):
        return lower
    try:
        found = langcodes.find(lower).language if lower else None
    except LookupError:
        return ""
    return found if found and _is_code(found) else ""


def _is_code(text: str) -> bool:
    return len(text) == CODE_LETTERS and text.isascii() and text.isalpha() and langcodes.tag_is_valid(text)
