"""Keyset pages: a position in an ordered list, forwards or backwards, as a token the gateway signs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.kit.errors import InvalidArgument, InvalidCursor

MAX_LIMIT = 200
MAX_TOKEN_CHARACTERS = 300
"""More than any list gives out: the longest names a user, who has at most 255."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PageQuery:
    """At most `limit` entries after `position` (before it when `backwards`); no position: from the start."""

    limit: int
    position: str | None = None
    backwards: bool = False

    @classmethod
    def parse(cls, *, limit: int, token: str) -> PageQuery:
        """Of a request's limit and token."""
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidArgument(f"limit must be between 1 and {MAX_LIMIT}.", field="page.limit")
        if not token:
            return cls(limit)
        direction, _, position = token.partition(":")
        if direction not in ("after", "before") or not position or len(token) > MAX_TOKEN_CHARACTERS or "\0" in token:
            raise InvalidCursor
        return cls(limit, position, direction == "before")


def to_number(position: str, *, digits: int) -> int:
    """The number in a position, with at most so many digits. InvalidCursor for ², which is a digit to Python too."""
    if not (position.isascii() and position.isdigit() and len(position) <= digits):
        raise InvalidCursor
    return int(position)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Entries in the list's order and the tokens of the neighbours, "" where there is none."""

    entries: Sequence[T]
    next_token: str
    previous_token: str


def page_of(query: PageQuery, found: Sequence[T], position_of: Callable[[T], str]) -> Page[T]:
    """The page for `found`: up to limit + 1 entries read in the query's direction."""
    more = len(found) > query.limit
    entries = list(found[: query.limit])
    if query.backwards:
        entries.reverse()
    has_next = more if not query.backwards else True
    has_previous = (query.position is not None) if not query.backwards else more
    if not entries:
        return Page((), "", "")
    return Page(
        entries,
        f"after:{position_of(entries[-1])}" if has_next else "",
        f"before:{position_of(entries[0])}" if has_previous else "",
    )
