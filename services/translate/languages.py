"""Language tags of BCP 47, checked against the registry that langcodes carries."""

import re

import langcodes
from langcodes import Language
from langcodes.tag_parser import LanguageTagError

from services.kit.text import replace_unstorable

# Language, script, region and variants. No extensions and no private use: they name no language, and could carry words.
_SHAPE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,5}")
MAX_TAG_CHARACTERS = 35
# Undetermined, several, none, and one without a code: true of a text, and nothing to translate into.
NO_LANGUAGE = frozenset({"und", "mul", "zxx", "mis"})
_PRIVATE_USE = re.compile(r"q[a-t][a-z](-|$)")
MAX_REMEMBERED = 10_000


def find_tag(text: str) -> str | None:
    """The tag in its canonical form (EN-us: en-US; iw: he); None for what is not registered."""
    if len(text) > MAX_TAG_CHARACTERS or not _SHAPE.fullmatch(text):
        return None
    _forget_some()
    try:
        language = Language.get(text)
    except LanguageTagError:
        return None
    tag = language.to_tag()
    return tag if language.is_valid() and not _PRIVATE_USE.match(tag) else None


def read_tag(said: str) -> str | None:
    """The tag of what a model calls a language: a tag, one with underscores (en_US), or a name (English)."""
    if tag := find_tag(said.strip().replace("_", "-")):
        return tag
    if len(said) > MAX_TAG_CHARACTERS:
        return None
    try:
        # langcodes raises SystemError for text with NUL.
        return find_tag(langcodes.find(replace_unstorable(said)).to_tag())
    except LookupError:
        return None


def find_language(text: str) -> str | None:
    """The tag of a language that a text can be written in, or None."""
    tag = find_tag(text)
    return tag if tag is not None and tag.partition("-")[0] not in NO_LANGUAGE else None


def _forget_some() -> None:
    """langcodes remembers every tag it was ever asked about, and callers can make up any number of them."""
    if len(Language._PARSE_CACHE) > MAX_REMEMBERED:
        Language._PARSE_CACHE.clear()
        Language._INSTANCES.clear()
