"""Who else reaches a session: shares with users, and the public link."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from backendai.chat.v1 import chat_pb2 as pb
from fastapi import APIRouter, Body, Response
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from gateway.answers import Moment, answer, moment
from gateway.bodies import NOT_BLANK, Nothing, not_blank
from gateway.calls import Cursor, InWorkspace, Limit, SessionId
from gateway.preferences import fingerprint, idempotency_key_of, takes
from gateway.problems import problems
from gateway.routes.chats import SessionOut, told
from gateway.routing import PrivateRoute

router = APIRouter(
    prefix="/api/workspaces/{workspace_id}/chats/{session_id}", tags=["sharing"], route_class=PrivateRoute
)

UserId = Annotated[str, Field(min_length=1, max_length=255, json_schema_extra=NOT_BLANK), AfterValidator(not_blank)]
Given = Literal["read", "write"]
PERMISSIONS: dict[Given, pb.Permission.ValueType] = {"read": pb.PERMISSION_READ, "write": pb.PERMISSION_WRITE}
GIVEN_OF: dict[int, Given] = {number: word for word, number in PERMISSIONS.items()}


@with_config(
    ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"user_id": "bob", "permission": "write"}]})
)
class ShareIn(TypedDict):
    """Whom to let in; `permission` is `read` unless given."""

    user_id: UserId
    permission: NotRequired[Given]


@with_config(ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"user_id": "bob"}]}))
class RevokeIn(TypedDict):
    """Whom to let in no longer."""

    user_id: UserId


class ShareOut(TypedDict):
    """A user's access to a session."""

    user_id: str
    permission: Given
    created_at: Moment


class SharePage(TypedDict):
    """One page of shares."""

    next: str | None
    previous: str | None
    results: list[ShareOut]


def share_out(share: pb.Share) -> ShareOut:
    """A share as JSON."""
    return {
        "user_id": share.user_id,
        "permission": GIVEN_OF[share.permission],
        "created_at": moment(share.created_at),
    }


@router.post(
    "/share/",
    status_code=201,
    operation_id="share_session",
    response_model=ShareOut,
    responses={
        200: {"model": ShareOut, "description": "The user had a share already; it has this permission now"},
        **problems(400, 401, 403, 404, 415, 422),
    },
    openapi_extra=takes("Idempotency-Key"),
)
async def share_session(call: InWorkspace, session_id: SessionId, body: Annotated[ShareIn, Body()]) -> Response:
    """Let a user, of the workspace or not, reach this one session. Owner only."""
    user_id, permission = body["user_id"], body.get("permission", "read")
    shared = await call.parts.chat.ShareSession(
        pb.ShareSessionRequest(
            caller=call.caller,
            session_id=session_id,
            user_id=user_id,
            permission=PERMISSIONS[permission],
            idempotency_key=idempotency_key_of(call.request),
            request_fingerprint=fingerprint([user_id, permission]),
        )
    )
    return answer(share_out(shared.share), 201 if shared.created else 200)


@router.get(
    "/shares/", operation_id="list_shares", response_model=SharePage, responses=problems(400, 401, 403, 404, 422)
)
async def list_shares(call: InWorkspace, session_id: SessionId, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """Whom the session is shared with, by user id. Owner only."""
    listing = call.parts.cursors.listing(call.request, limit=limit, cursor=cursor)
    found = await call.parts.chat.ListShares(
        pb.ListSharesRequest(caller=call.caller, session_id=session_id, page=listing.page)
    )
    return listing.answer([share_out(share) for share in found.shares], found.page)


@router.post(
    "/revoke-share/",
    status_code=204,
    operation_id="revoke_share",
    response_class=Response,
    responses=problems(400, 401, 403, 404, 415, 422),
)
async def revoke_share(call: InWorkspace, session_id: SessionId, body: Annotated[RevokeIn, Body()]) -> Response:
    """Take a share back. Owner only; 404 for who has none."""
    await call.parts.chat.RevokeShare(
        pb.RevokeShareRequest(caller=call.caller, session_id=session_id, user_id=body["user_id"])
    )
    return Response(status_code=204)


@router.post(
    "/toggle-public/",
    operation_id="toggle_public",
    response_model=SessionOut,
    responses=problems(400, 401, 403, 404, 415, 422),
    openapi_extra=takes("Idempotency-Key"),
)
async def toggle_public(
    call: InWorkspace, session_id: SessionId, body: Annotated[Nothing, Body(default_factory=dict)]
) -> Response:
    """Switch the public link on, each time with a new id, or off, which kills the old one at once. Owner only."""
    switched = await call.parts.chat.TogglePublic(
        pb.TogglePublicRequest(
            caller=call.caller,
            session_id=session_id,
            idempotency_key=idempotency_key_of(call.request),
            request_fingerprint=fingerprint(body),
        )
    )
    return told(switched.session)
