"""Authorization as SQL: which sessions a caller can see, and with which permission."""

from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, Select, and_, bindparam, case, exists, literal, or_, select

from services.chat.store.tables import sessions, shares, tasks
from services.kit.callers import Caller

user: BindParameter[str] = bindparam("user")
workspace: BindParameter[UUID] = bindparam("workspace")
member: BindParameter[bool] = bindparam("member")

own_share = shares.alias("own_share")
is_owner: ColumnElement[bool] = and_(sessions.c.user_id == user, member)

permission: ColumnElement[str] = case((is_owner, literal("owner")), else_=own_share.c.permission)

visible_from = sessions.outerjoin(own_share, and_(own_share.c.session_id == sessions.c.id, own_share.c.user_id == user))
is_visible: ColumnElement[bool] = and_(
    sessions.c.workspace_id == workspace,
    sessions.c.deleted_at.is_(None),
    or_(is_owner, own_share.c.user_id.is_not(None)),
)

is_shared: ColumnElement[bool] = exists().where(shares.c.session_id == sessions.c.id).correlate(sessions)
active_task_id = (
    select(tasks.c.id)
    .where(tasks.c.session_id == sessions.c.id, tasks.c.state.in_(("queued", "running")))
    .correlate(sessions)
    .scalar_subquery()
)


def caller_parameters(caller: Caller) -> dict[str, Any]:
    """The values of the caller's bind parameters."""
    return {"user": caller.user_id, "workspace": caller.workspace_id, "member": caller.is_member}


def visible_sessions() -> Select[Any]:
    """Every session the caller can see, as the caller sees it; to be narrowed."""
    return (
        select(
            sessions,
            permission.label("permission"),
            is_shared.label("is_shared"),
            active_task_id.label("active_task_id"),
        )
        .select_from(visible_from)
        .where(is_visible)
    )
