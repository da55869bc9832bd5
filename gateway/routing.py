"""The classes of routes: HEAD beside GET for all, authentication and a strict reader of bodies for private ones."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from gateway.bodies import read_json
from gateway.parts import parts_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Route(APIRoute):
    """A route that answers HEAD wherever it answers GET; the server leaves the body out (RFC 9110, section 9.3.2)."""

    answers_head = True

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if self.answers_head and self.methods and "GET" in self.methods:
            self.methods.add("HEAD")


class PrivateRoute(Route):
    """A route for callers with a valid token; a body is read only for them."""

    def get_route_handler(self) -> Handler:
        """The framework's handler behind authentication and the strict reader of bodies."""
        handle, takes_body = super().get_route_handler(), self.body_field is not None

        async def guarded(request: Request) -> Response:
            authenticator = parts_of(request).authenticator
            request.scope["principal"] = await authenticator.authenticate(request.scope["headers"])
            return await handle(await read_json(request) if takes_body else request)

        return guarded
