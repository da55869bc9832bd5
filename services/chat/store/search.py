"""Words in the names and messages of a user's own sessions, best first."""

from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.chat.domain import Session, SessionStatus
from services.chat.store.rows import to_session
from services.chat.store.visibility import caller_parameters
from services.kit.callers import Caller
from services.kit.errors import InvalidCursor
from services.kit.ids import parse_id
from services.kit.paging import Page, PageQuery, page_of
from services.kit.postgres.engine import autocommit

NAME_WEIGHT = 4
"""How much more a word in a name says about a session than one in a message."""
RANK_STEP = Decimal("1e-9")
"""What ranks are rounded to."""

# Ranked first, looked up after: only the sessions of the page are read whole. Nobody else's session can be a hit,
# since both branches are narrowed to the caller's own.
SEARCH = """
    with wanted as (select websearch_to_tsquery('simple', :search) as words),
    own as (
      select id, name from chat.sessions
      where workspace_id = :workspace and user_id = :user and :member and deleted_at is null
        and (cast(:status as text) is null or status = :status)
    ), hits as (
      select id, ts_rank(to_tsvector('simple', coalesce(name, '')), words) * :name_weight as rank from own, wanted
      where to_tsvector('simple', coalesce(name, '')) @@ words
      union all
      select m.session_id, max(ts_rank(to_tsvector('simple', left(m.content, 100000)), words))
      from wanted, chat.messages m
      where to_tsvector('simple', left(m.content, 100000)) @@ words and m.session_id in (select id from own)
      group by m.session_id
    ), ranked as (
      select id, round(sum(rank)::numeric, 9) as rank from hits group by id
    ), page as (
      select id, rank from ranked
      where {position} order by {order} limit :limit
    )
    select s.*, page.rank, 'owner' as permission,
      exists (select 1 from chat.shares h where h.session_id = s.id) as is_shared,
      (select t.id from chat.tasks t where t.session_id = s.id and t.state in ('queued', 'running')) as active_task_id
    from page join chat.sessions s on s.id = page.id
    order by {outer_order}
"""


def _statement(position: str, order: str) -> Any:
    outer = order.replace("rank", "page.rank").replace("id", "s.id")
    return text(SEARCH.format(position=position, order=order, outer_order=outer))


FIRST = _statement("true", "rank desc, id desc")
AFTER = _statement("(rank, id) < (:rank, :id)", "rank desc, id desc")
BEFORE = _statement("(rank, id) > (:rank, :id)", "rank asc, id asc")


class SearchStore:
    """Full-text search, in Postgres."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._autocommit = autocommit(engine)

    async def page(
        self, caller: Caller, query: PageQuery, words: str, *, status: SessionStatus | None
    ) -> Page[Session]:
        """The caller's own sessions that hold the words, best first."""
        parameters: dict[str, Any] = {
            **caller_parameters(caller),
            "search": words,
            "status": status,
            "name_weight": NAME_WEIGHT,
            "limit": query.limit + 1,
        }
        statement = FIRST
        if query.position is not None:
            parameters["rank"], parameters["id"] = _parse(query.position)
            statement = BEFORE if query.backwards else AFTER
        async with self._autocommit.connect() as connection:
            rows = (await connection.execute(statement, parameters)).mappings().all()
        found = page_of(query, rows, _position)
        return Page([to_session(row) for row in found.entries], found.next_token, found.previous_token)


def _position(row: RowMapping) -> str:
    return f"{row['rank']}_{row['id']}"


def _parse(position: str) -> tuple[Decimal, UUID]:
    rank, _, identifier = position.partition("_")
    parsed = parse_id(identifier)
    try:
        value = Decimal(rank).quantize(RANK_STEP)  # fails for what is larger than any rank, or infinite
    except InvalidOperation:
        raise InvalidCursor from None
    if parsed is None or value.is_nan():
        raise InvalidCursor
    return value, parsed
