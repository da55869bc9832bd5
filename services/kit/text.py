"""Text on its way to Postgres, which stores every character but NUL, and to protobuf, which takes whole characters.

What a caller says is refused with it, by the field's name. What a run brings is stored without it: a provider may send
it, and a refusal would lose the run's work.
"""

from typing import TypeVar

from services.kit.errors import InvalidArgument

T = TypeVar("T")

MAX_KEY_CHARACTERS = 255


def check_text(text: str, *, field: str, least: int = 0, most: int) -> str:
    """The text, if it has so many characters and no NUL."""
    if not least <= len(text) <= most or "\0" in text:
        raise InvalidArgument(f"{field} must have {least} to {most} characters and no NUL.", field=field)
    return text


def check_key(key: str, *, field: str) -> str:
    """The key, if it is 1 to 255 printable ASCII characters."""
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
        raise InvalidArgument(f"{field} must have 1 to {MAX_KEY_CHARACTERS} printable ASCII characters.", field=field)
    return key


def storable(document: T) -> T:
    """The same text, or JSON of any shape, without NUL."""
    found: object = document
    if isinstance(document, str):
        found = document.replace("\0", "")
    elif isinstance(document, dict):
        found = {storable(name): storable(value) for name, value in document.items()}
    elif isinstance(document, list):
        found = [storable(value) for value in document]
    return found  # type: ignore[return-value]  # of the type that came in


def replace_unstorable(text: str) -> str:
    """The text with U+FFFD for NUL and for half a surrogate pair. Two halves side by side become their character."""
    if text.isascii():
        return text.replace("\0", "\ufffd")
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
