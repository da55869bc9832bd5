"""The ASGI application: its routes, its edge, its problems."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from gateway import openapi, problems
from gateway.cors import Cors
from gateway.edge import Edge
from gateway.parts import Parts
from gateway.routes import chats, credits, health, messages, models, public, shares, speech, tasks, translate, users

TITLE = "BackendAI Chat"
VERSION = "0.1.0"
# In this order requests are matched: the most frequent first, and fixed words before ids.
RESOURCES = (messages, tasks, chats, shares, credits, speech, translate, models, users, public, health)


def create_app(parts: Parts, *, draining: asyncio.Event, cors: Cors) -> FastAPI:
    """The application over these parts."""
    app = routed_app()
    app.state.parts = parts
    openapi.install(app)
    problems.install(app)
    app.router.default = _not_found
    app.add_middleware(Edge, draining=draining, cors=cors)
    return app


def routed_app() -> FastAPI:
    """The routes that the OpenAPI document describes, with nothing behind them."""
    off: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}
    app = FastAPI(title=TITLE, version=VERSION, openapi_url=None, redirect_slashes=False, telemetry=off)
    for resource in RESOURCES:
        # Not include_router, which matches each path twice.
        app.router.routes.extend(resource.router.routes)
    return app


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """307 to the path with, or without, its trailing slash if there is one like that; else the one 404."""
    path = scope["path"]
    other = path.rstrip("/") if path.endswith("/") else f"{path}/"
    if other and any(route.matches({**scope, "path": other})[0] is not Match.NONE for route in scope["app"].routes):
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        await Response(status_code=307, headers={"Location": quote(other) + query})(scope, receive, send)
        return
    raise problems.not_found()
