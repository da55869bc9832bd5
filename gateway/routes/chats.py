"""Chat sessions: `/api/workspaces/{workspace_id}/chats/`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Literal

import orjson
from backendai.chat.v1 import chat_pb2 as pb
from fastapi import APIRouter, Body, Query, Response
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from pydantic import AfterValidator, ConfigDict, Field, JsonValue, with_config
from typing_extensions import TypedDict

from gateway.answers import Id, Moment, answer, moment
from gateway.bodies import MAX_PARAMETERS_BYTES, MAX_SAFE_INTEGER, STORABLE, storable, storable_object
from gateway.calls import Cursor, InWorkspace, Limit, SessionId, WorkspaceCall
from gateway.preferences import (
    NO_VERSION,
    etag,
    fingerprint,
    idempotency_key_of,
    if_match_of,
    takes,
)
from gateway.problems import problems
from gateway.routing import PrivateRoute

router = APIRouter(prefix="/api/workspaces/{workspace_id}/chats", tags=["chats"], route_class=PrivateRoute)

Status = Literal["active", "completed", "archived"]
Scope = Literal["owned", "shared", "all"]
Provider = Literal["openai", "google", "anthropic", "groq", "deepseek", "local"]
Framework = Literal["langgraph", "pydantic_ai", "none"]
Permission = Literal["owner", "write", "read"]

STATUSES: dict[Status, pb.SessionStatus.ValueType] = {
    "active": pb.SESSION_STATUS_ACTIVE,
    "completed": pb.SESSION_STATUS_COMPLETED,
    "archived": pb.SESSION_STATUS_ARCHIVED,
}
STATUS_OF: dict[int, Status] = {number: word for word, number in STATUSES.items()}
SCOPES: dict[str, pb.SessionScope.ValueType] = {
    "owned": pb.SESSION_SCOPE_OWNED,
    "shared": pb.SESSION_SCOPE_SHARED,
    "all": pb.SESSION_SCOPE_UNSPECIFIED,
}
PERMISSION_OF: dict[int, Permission] = {
    pb.PERMISSION_OWNER: "owner",
    pb.PERMISSION_WRITE: "write",
    pb.PERMISSION_READ: "read",
}


def _small(document: dict[str, Any]) -> dict[str, Any]:
    """Within the bounds of what a session keeps."""
    storable_object(document)
    if len(orjson.dumps(document)) > MAX_PARAMETERS_BYTES:
        raise ValueError(f"must not be larger than {MAX_PARAMETERS_BYTES} bytes")
    return document


Name = Annotated[str, Field(max_length=255, json_schema_extra=STORABLE), AfterValidator(storable)]
Prompt = Annotated[str, Field(max_length=100_000, json_schema_extra=STORABLE), AfterValidator(storable)]
Penalty = Annotated[float, Field(ge=-2, le=2)]

EXAMPLE: dict[str, JsonValue] = {
    "name": "Market research",
    "ai_provider": "google",
    "ai_model": "gemini-2.5-pro",
    "system_prompt": "You are a helpful research assistant.",
    "temperature": 0.7,
    "agent_framework": "langgraph",
}


@with_config(ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [EXAMPLE]}))
class SessionIn(TypedDict, total=False):
    """What the owner of a session sets. Every field is optional."""

    name: Name | None
    status: Status
    ai_provider: Provider
    ai_model: Annotated[str, Field(min_length=1, max_length=100, json_schema_extra=STORABLE), AfterValidator(storable)]
    system_prompt: Prompt | None
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    max_tokens: Annotated[int, Field(gt=0, lt=2**31)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    frequency_penalty: Penalty | None
    presence_penalty: Penalty | None
    model_parameters: Annotated[dict[str, Any], AfterValidator(_small)]
    agent_framework: Framework


WRITABLE = tuple(SessionIn.__annotations__)


class SessionOut(TypedDict):
    """A chat session as its caller sees it."""

    id: Id
    workspace_id: Id
    user_id: str
    name: str | None
    status: Status
    ai_provider: str
    ai_model: str
    system_prompt: str | None
    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    model_parameters: dict[str, Any]
    agent_framework: str
    is_shared: bool
    is_public: bool
    shareable_link_id: Id | None
    my_permission: Permission
    active_task_id: Id | None
    message_count: int
    created_at: Moment
    updated_at: Moment


def session_out(session: pb.Session) -> SessionOut:
    """A session as JSON."""
    settings = session.settings
    return {
        "id": session.id,
        "workspace_id": session.workspace_id,
        "user_id": session.user_id,
        "name": settings.name if settings.HasField("name") else None,
        "status": STATUS_OF[settings.status],
        "ai_provider": settings.ai_provider,
        "ai_model": settings.ai_model,
        "system_prompt": settings.system_prompt if settings.HasField("system_prompt") else None,
        "temperature": settings.temperature if settings.HasField("temperature") else None,
        "max_tokens": settings.max_tokens if settings.HasField("max_tokens") else None,
        "top_p": settings.top_p if settings.HasField("top_p") else None,
        "frequency_penalty": settings.frequency_penalty if settings.HasField("frequency_penalty") else None,
        "presence_penalty": settings.presence_penalty if settings.HasField("presence_penalty") else None,
        "model_parameters": _parameters_out(settings),
        "agent_framework": settings.agent_framework,
        "is_shared": session.is_shared,
        "is_public": bool(session.shareable_link_id),
        "shareable_link_id": session.shareable_link_id or None,
        "my_permission": PERMISSION_OF[session.my_permission],
        "active_task_id": session.active_task_id or None,
        "message_count": session.message_count,
        "created_at": moment(session.created_at),
        "updated_at": moment(session.updated_at),
    }


def _parameters_out(settings: pb.SessionSettings) -> dict[str, Any]:
    if not settings.model_parameters.fields:
        return {}
    found: dict[str, Any] = _with_ints(MessageToDict(settings.model_parameters))
    return found


def _with_ints(value: Any) -> Any:
    """Struct knows floats only; 40 must not come back as 40.0. Beyond 2^53 it can only have been a float."""
    match value:
        case float() if value.is_integer() and abs(value) <= MAX_SAFE_INTEGER:
            return int(value)
        case dict():
            return {name: _with_ints(inner) for name, inner in value.items()}
        case list():
            return [_with_ints(inner) for inner in value]
    return value


def to_settings(body: SessionIn) -> pb.SessionSettings:
    """The settings that a body gives; what it leaves out, or sets to null, is unset."""
    given: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
    if "status" in given:
        given["status"] = STATUSES[given["status"]]
    if "model_parameters" in given:
        parameters = Struct()
        parameters.update(given["model_parameters"])
        given["model_parameters"] = parameters
    return pb.SessionSettings(**given)


def told(session: pb.Session, status: int = 200) -> Response:
    """One session with its ETag, and its place when it is new."""
    path = f"/api/workspaces/{session.workspace_id}/chats/{session.id}/"
    place = {"Location": path} if status == HTTPStatus.CREATED else {}
    return answer(session_out(session), status, {**etag(session.version), **place})


class SessionPage(TypedDict):
    """One page of sessions."""

    next: str | None
    previous: str | None
    results: list[SessionOut]


@router.get("/", operation_id="list_sessions", response_model=SessionPage, responses=problems(400, 401, 404, 422))
async def list_sessions(
    call: InWorkspace,
    scope: Annotated[Scope, Query(description="The caller's own, those shared with it, or both.")] = "all",
    status: Annotated[Status | None, Query(description="Only those of this status.")] = None,
    search: Annotated[
        str,
        Query(max_length=200, description="Words of names and messages.", json_schema_extra=STORABLE),
        AfterValidator(storable),
    ] = "",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Sessions the caller owns or that are shared with it, newest activity first."""
    words = search.strip()
    filters = {"scope": None if scope == "all" else scope, "status": status, "search": words or None}
    listing = call.parts.cursors.listing(call.request, limit=limit, cursor=cursor, filters=filters)
    found = await listing.fetch(
        lambda: call.parts.chat.ListSessions(
            pb.ListSessionsRequest(
                caller=call.caller,
                scope=SCOPES[scope],
                status=STATUSES[status] if status else pb.SESSION_STATUS_UNSPECIFIED,
                search=words,
                page=listing.page,
            )
        )
    )
    return listing.answer([session_out(session) for session in found.sessions], found.page)


@router.post(
    "/",
    status_code=201,
    operation_id="create_session",
    response_model=SessionOut,
    responses=problems(400, 401, 402, 403, 404, 415, 422),
    openapi_extra=takes("Idempotency-Key"),
)
async def create_session(call: InWorkspace, body: Annotated[SessionIn, Body(default_factory=dict)]) -> Response:
    """Open a session, if the workspace can pay for a first answer. Provider and model have defaults."""
    call.require_writer()
    made = await call.parts.chat.CreateSession(
        pb.CreateSessionRequest(
            caller=call.caller,
            settings=to_settings(body),
            idempotency_key=idempotency_key_of(call.request),
            request_fingerprint=fingerprint(body),
        )
    )
    return told(made.session, 201)


@router.get("/{session_id}/", operation_id="get_session", response_model=SessionOut, responses=problems(401, 404))
async def get_session(call: InWorkspace, session_id: SessionId) -> Response:
    """One session. Its `ETag` stands for its settings, not for its activity."""
    return told(await _session(call, session_id))


@router.put(
    "/{session_id}/",
    operation_id="replace_session",
    response_model=SessionOut,
    responses=problems(400, 401, 403, 404, 412, 415, 422),
    openapi_extra=takes("If-Match"),
)
async def replace_session(call: InWorkspace, session_id: SessionId, body: Annotated[SessionIn, Body()]) -> Response:
    """Replace what the owner sets: a field that is left out gets its default."""
    return await _update(call, session_id, body, WRITABLE)


@router.patch(
    "/{session_id}/",
    operation_id="update_session",
    response_model=SessionOut,
    responses=problems(400, 401, 403, 404, 412, 415, 422),
    openapi_extra=takes("If-Match"),
)
async def update_session(call: InWorkspace, session_id: SessionId, body: Annotated[SessionIn, Body()]) -> Response:
    """Change the fields that are sent: null clears one that can be null."""
    return await _update(call, session_id, body, tuple(body))


@router.delete(
    "/{session_id}/",
    status_code=204,
    operation_id="delete_session",
    response_class=Response,
    responses=problems(401, 403, 404, 412),
    openapi_extra=takes("If-Match"),
)
async def delete_session(call: InWorkspace, session_id: SessionId) -> Response:
    """Delete a session with its messages; a running task is cancelled, and what it has used is paid."""
    version = await _expected_version(call, session_id)
    await call.parts.chat.DeleteSession(
        pb.DeleteSessionRequest(caller=call.caller, session_id=session_id, if_version=version)
    )
    return Response(status_code=204)


async def _session(call: WorkspaceCall, session_id: str) -> pb.Session:
    found = await call.parts.chat.GetSession(pb.GetSessionRequest(caller=call.caller, session_id=session_id))
    return found.session


async def _update(call: WorkspaceCall, session_id: str, body: SessionIn, fields: tuple[str, ...]) -> Response:
    changed = await call.parts.chat.UpdateSession(
        pb.UpdateSessionRequest(
            caller=call.caller,
            session_id=session_id,
            settings=to_settings(body),
            update_mask=FieldMask(paths=fields),
            if_version=await _expected_version(call, session_id),
        )
    )
    return told(changed.session)


async def _expected_version(call: WorkspaceCall, session_id: str) -> int:
    """The version that chat is to require, 0 for any. Of several tags it is the present one, if that is among them."""
    versions = if_match_of(call.request)
    if len(versions) <= 1:
        return versions[0] if versions else 0
    present = (await _session(call, session_id)).version
    return present if present in versions else NO_VERSION
