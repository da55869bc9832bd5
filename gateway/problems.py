"""The only place where a failed call becomes problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NotRequired

import grpc
import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope
from typing_extensions import TypedDict

from services.kit.grpc_errors import error_info

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = "1"
MAX_ERRORS = 20
MAX_POINTER_CHARACTERS = 200

STATUS_OF_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: 422,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    # With a reason: a provider failed. Without one it is a defect of ours, and 500.
    grpc.StatusCode.INTERNAL: 502,
}
STATUS_OF_REASON = {
    "INVALID_CURSOR": 400,
    "INSUFFICIENT_CREDITS": 402,
    "VERSION_MISMATCH": 412,
    "PRICE_UNKNOWN": 422,
    "AUDIO_TOO_LARGE": 413,
    "AUDIO_TYPE_UNSUPPORTED": 415,
}
# What a reason's metadata tells the caller; the rest of it is for logs.
SHOWN_METADATA = ("task_id",)


class ErrorOut(TypedDict):
    """One thing that is wrong with the request."""

    pointer: str
    detail: str


class ProblemOut(TypedDict):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: NotRequired[list[ErrorOut]]
    task_id: NotRequired[str]


class Problem(Exception):
    """A request that fails, as its caller is to be told."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[ErrorOut] = (),
        headers: Mapping[str, str] | None = None,
        **members: str,
    ) -> None:
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers, self.members = errors, headers, members
        super().__init__(code)


def not_found() -> Problem:
    """Unknown, malformed, deleted, not for this caller: the same for all of them."""
    return Problem(404, "not_found", "Not found.")


def forbidden() -> Problem:
    """For a caller who may know that the thing exists."""
    return Problem(403, "permission_denied", "You may not do this.")


def invalid(pointer: str, detail: str, *, code: str = "validation_error") -> Problem:
    """One field that is wrong."""
    return Problem(422, code, "The request is not valid.", errors=[{"pointer": pointer, "detail": detail}])


def unavailable(detail: str, *, code: str = "unavailable", retry_seconds: str = RETRY_SECONDS) -> Problem:
    """Worth trying again soon."""
    return Problem(503, code, detail, headers={"Retry-After": retry_seconds})


def uri_too_long() -> Problem:
    """More than the parser of URLs takes."""
    return Problem(414, "uri_too_long", "The URL is too long.")


def body_of(problem: Problem, request_id: str) -> bytes:
    """The problem as JSON."""
    document: dict[str, Any] = {
        "type": f"urn:backendai:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    if problem.errors:
        document["errors"] = list(problem.errors)
    return orjson.dumps(document | problem.members)


def response_of(problem: Problem, request_id: str) -> Response:
    """The problem as an answer."""
    headers = {"Cache-Control": "no-store", **(problem.headers or {})}
    return Response(body_of(problem, request_id), problem.status, headers, MEDIA_TYPE)


def of_call(error: grpc.aio.AioRpcError) -> Problem:
    """What a service's refusal, or its silence, means to the caller. Driver and transport texts stay inside."""
    info = error_info(error)
    if info is None:
        return _of_transport(error)
    if info.reason == "CALLER_NOT_ALLOWED":  # our own certificate is not the gateway's: nothing that a caller can mend
        return _of_transport(error)
    status = STATUS_OF_REASON.get(info.reason) or STATUS_OF_CODE.get(error.code(), 500)
    if status == 404:
        return not_found()
    if status == 503:
        retry_seconds = info.metadata.get("retry_after_seconds", RETRY_SECONDS)
        return unavailable(error.details() or "", code=info.reason.lower(), retry_seconds=retry_seconds)
    if "field" in info.metadata:
        return invalid(f"/{info.metadata['field']}", error.details() or "", code=info.reason.lower())
    members = {name: info.metadata[name] for name in SHOWN_METADATA if name in info.metadata}
    return Problem(status, info.reason.lower(), error.details() or "", **members)


def _of_transport(error: grpc.aio.AioRpcError) -> Problem:
    """A call that no service has answered on purpose."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return unavailable("A part of the system is not reachable now. Try again.")
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Problem(504, "deadline_exceeded", "A part of the system took too long to answer.")
    log.error("call_failed", grpc_code=error.code().name)
    return internal()


def internal() -> Problem:
    """A defect of ours."""
    return Problem(500, "internal_error", "Something went wrong on our side.")


def of_validation(error: RequestValidationError) -> Problem:
    """What is wrong with the request's fields; never what was sent in them."""
    found: list[ErrorOut] = [
        {"pointer": _pointer(one["loc"]), "detail": str(one["msg"]).removeprefix("Value error, ")}
        for one in error.errors()[:MAX_ERRORS]
    ]
    return Problem(422, "validation_error", "The request is not valid.", errors=found)


def _pointer(location: Sequence[str | int]) -> str:
    """A JSON pointer into the body, or to a parameter's name."""
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in location[1:])
    return "".join(f"/{step}" for step in steps)[:MAX_POINTER_CHARACTERS]


def of_http(error: HTTPException, scope: Scope) -> Problem:
    """What the framework refuses by itself."""
    if error.status_code == 404:
        return not_found()
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods_at(scope)))
        return Problem(405, "method_not_allowed", "This path has no such method.", headers={"Allow": allowed})
    status = HTTPStatus(error.status_code)
    return Problem(status, status.name.lower(), f"{status.phrase}.", headers=error.headers)


def _methods_at(scope: Scope) -> set[str]:
    """All methods of the path, whichever routes they are of. A fixed word is not what an id stands for elsewhere."""
    matching = [route for route in scope["app"].routes if route.matches(scope)[0] is not Match.NONE]
    same = (route for route in matching if route.path == matching[0].path)
    return {method for route in same for method in getattr(route, "methods", None) or ()}


def install(app: FastAPI) -> None:
    """Make every failure of the app a problem."""

    def told(problem: Problem, request: Request) -> Response:
        return response_of(problem, request.scope["request_id"])

    async def on_problem(request: Request, error: Problem) -> Response:
        return told(error, request)

    async def on_call(request: Request, error: grpc.aio.AioRpcError) -> Response:
        return told(of_call(error), request)

    async def on_validation(request: Request, error: RequestValidationError) -> Response:
        return told(of_validation(error), request)

    async def on_http(request: Request, error: HTTPException) -> Response:
        return told(of_http(error, request.scope), request)

    handlers: dict[type[Exception], Any] = {
        Problem: on_problem,
        grpc.aio.AioRpcError: on_call,
        RequestValidationError: on_validation,
        HTTPException: on_http,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: how a route can fail. `default` stands for what every route can answer."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    named: dict[int | str, dict[str, Any]] = {
        status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses
    }
    return {**named, "default": {"description": "Any other problem", "content": content}}
