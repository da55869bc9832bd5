"""Ids: UUID v7, which sort by the time they were made."""

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """A fresh UUID v7."""
    return uuid7()


def parse_id(text: str) -> UUID | None:
    """The UUID that `text` is in its canonical form, or None."""
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value if str(value) == text.lower() else None
