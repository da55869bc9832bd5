"""What stands before every private route: the caller is known and the body parsed before anything else is done."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from gateway.bodies import read_json
from gateway.parts import parts_of

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PrivateRoute(APIRoute):
    """A route for callers with a valid token; a body is read only for them."""

    def get_route_handler(self) -> Handler:
        """The framework's handler behind authentication and the strict reader of bodies."""
        handle, takes_body = super().get_route_handler(), self.body_field is not None

        async def guarded(request: Request) -> Response:
            authenticator = parts_of(request).authenticator
            request.scope["principal"] = await authenticator.authenticate(request.scope["headers"])
            return await handle(await read_json(request) if takes_body else request)

        return guarded
