"""What a public link shows to anyone: `/api/chats/shared/{link_id}/`, as JSON or as a page."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import grpc
from backendai.chat.v1 import chat_pb2 as pb
from fastapi import APIRouter, Path, Request, Response
from pydantic import AfterValidator, WithJsonSchema
from typing_extensions import TypedDict

from gateway import pages
from gateway.accept import prefers
from gateway.answers import Moment, answer, moment
from gateway.calls import UUID_SCHEMA, object_id
from gateway.openapi import PUBLIC
from gateway.parts import parts_of
from gateway.problems import Problem, of_call, problems, response_of
from gateway.routing import Handler, Route

# Whoever has the link may read; nobody else is to learn of it, not from a search engine and not from a cache.
HEADERS = {
    "X-Robots-Tag": "noindex",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Vary": "Accept",
}
# One page at a time: whoever asks for many long ones waits, the others' requests don't.
_printer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pages")


class PublicRoute(Route):
    """A route for people too: what fails is told in the form that was asked for, and under the same headers."""

    def get_route_handler(self) -> Handler:
        """The framework's handler, with its failures as pages."""
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handle(request)
            except Problem as problem:
                return _refusal(request, problem)
            except grpc.aio.AioRpcError as error:
                return _refusal(request, of_call(error))

        return shown


router = APIRouter(prefix="/api/chats/shared", tags=["public"], route_class=PublicRoute)

# Takes whatever stands there: what is no link is a link that leads nowhere.
LinkId = Annotated[str, Path(description="The public link.", json_schema_extra=UUID_SCHEMA), AfterValidator(object_id)]


Speaker = Annotated[str, WithJsonSchema({"type": "string", "enum": ["user", "assistant"]})]


class PublicMessageOut(TypedDict):
    """What anyone may see of a message."""

    role: Speaker
    content: str
    created_at: Moment


class PublicSessionOut(TypedDict):
    """What anyone may see of a session: never an id, a system prompt, tool traffic or a cost."""

    name: str | None
    created_at: Moment
    messages: list[PublicMessageOut]


def public_out(session: pb.GetPublicSessionResponse) -> PublicSessionOut:
    """A public session as JSON."""
    return {
        "name": session.name or None,
        "created_at": moment(session.created_at),
        "messages": [
            {"role": message.role, "content": message.content, "created_at": moment(message.created_at)}
            for message in session.messages
        ],
    }


def _refusal(request: Request, problem: Problem) -> Response:
    if not prefers(request, pages.MEDIA_TYPE):
        response = response_of(problem, request.scope["request_id"])
        response.headers.update(HEADERS)
        return response
    headers = {**(problem.headers or {}), **HEADERS}
    return pages.page_response(pages.problem_page(problem), problem.status, headers)


def _as_pages(responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: each of these is a page for who asks for one."""
    page = {pages.MEDIA_TYPE: {"schema": {"type": "string"}}}
    return {status: {**told, "content": {**told.get("content", {}), **page}} for status, told in responses.items()}


@router.get(
    "/{link_id:path}/",
    operation_id="get_public_session",
    response_model=PublicSessionOut,
    responses=_as_pages({200: {"description": "The conversation"}, **problems(404, 503)}),
    openapi_extra=PUBLIC,
)
async def get_public_session(request: Request, link_id: LinkId) -> Response:
    """A session that its owner has made public, for anyone who has its link. `Accept: text/html` gets a page."""
    found = await parts_of(request).chat.GetPublicSession(pb.GetPublicSessionRequest(shareable_link_id=link_id))
    if not prefers(request, pages.MEDIA_TYPE):
        return answer(public_out(found), headers=HEADERS)
    page = await asyncio.get_running_loop().run_in_executor(_printer, pages.session_page, found)
    return pages.page_response(page, 200, HEADERS)
