"""The OpenAPI document and its page, which loads nothing from elsewhere."""

from __future__ import annotations

import html
from copy import copy
from importlib.metadata import files
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.routing import BaseRoute

from gateway.contract import complete
from gateway.problems import ProblemOut

DOCUMENT_PATH = "/api/openapi.json"
PAGE_PATH = "/api/docs"
ASSETS_PACKAGE = "fastapi-offline"  # carries Swagger UI's files; nothing of its code runs
ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
PUBLIC: dict[str, Any] = {"security": []}
DESCRIPTION = """Chat sessions in workspaces, answered by agents, paid from the workspace's credits.

Failures are `application/problem+json` (RFC 9457) with a stable `code`. Lists are
`{"next", "previous", "results"}` with path-absolute links. Money is a decimal string in credits."""
TAGS = [
    {"name": "chats", "description": "Chat sessions."},
    {"name": "messages", "description": "Messages of a session; sending one starts a turn."},
    {"name": "tasks", "description": "The run behind a turn: poll it, cancel it."},
    {"name": "sharing", "description": "Who else reaches a session: users, and anyone who has its public link."},
    {"name": "public", "description": "What a public link shows, without a token."},
    {"name": "speech", "description": "Speech to text."},
    {"name": "translate", "description": "Translations, paid from the workspace's credits."},
    {"name": "credits", "description": "A workspace's credits and ledger."},
    {"name": "users", "description": "The caller over all its workspaces."},
    {"name": "models", "description": "Providers and models that are configured."},
    {"name": "health", "description": "For probes."},
]
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
START = """SwaggerUIBundle({
  url: document.querySelector("main").dataset.document,
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false,
});
"""


def document(app: FastAPI) -> dict[str, Any]:
    """The document: every private route wants a bearer token, every problem is one schema."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        tags=TAGS,
        routes=[_without_head(route) for route in app.routes],
        summary=app.summary,
    )
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    problem = TypeAdapter(ProblemOut).json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = {**problem, "title": "Problem"}
    made["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    made["security"] = [{"bearer": []}]
    return complete(made)


def _without_head(route: BaseRoute) -> BaseRoute:
    """The same route without HEAD, which would repeat each GET operation under the same id."""
    described = copy(route)
    if isinstance(described, APIRoute):
        described.methods = (described.methods or set()) - {"HEAD"}
    return described


def render(app: FastAPI) -> bytes:
    """The document as it is served, and kept in docs/openapi.json."""
    return orjson.dumps(document(app), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def install(app: FastAPI) -> None:
    """Serve the document and the page."""
    rendered: list[bytes] = []

    async def serve_document(request: Request) -> Response:
        if not rendered:
            rendered.append(render(app))
        return Response(rendered[0], media_type="application/json")

    async def serve_page(request: Request) -> Response:
        prefix = html.escape(request.scope.get("root_path", ""), quote=True)
        headers = {"Content-Security-Policy": CSP, "Referrer-Policy": "no-referrer"}
        return Response(_page(app.title, prefix), headers=headers, media_type="text/html")

    async def serve_start(request: Request) -> Response:
        return Response(START, media_type="text/javascript")

    app.add_route(DOCUMENT_PATH, serve_document, include_in_schema=False)
    app.add_route(PAGE_PATH, serve_page, include_in_schema=False)
    app.add_route(f"{PAGE_PATH}/start.js", serve_start, include_in_schema=False)
    for name, media_type in ASSETS.items():
        app.add_route(f"{PAGE_PATH}/{name}", _asset(name, media_type), include_in_schema=False)


def _asset(name: str, media_type: str) -> Any:
    path = next(Path(str(one.locate())) for one in files(ASSETS_PACKAGE) or () if one.name == name)

    def serve_asset(request: Request) -> Response:
        return Response(path.read_bytes(), headers={"Cache-Control": "max-age=86400"}, media_type=media_type)

    return serve_asset


def _page(title: str, prefix: str) -> str:
    assets = f"{prefix}{PAGE_PATH}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{assets}/swagger-ui.css">
</head>
<body>
<main id="swagger-ui" data-document="{prefix}{DOCUMENT_PATH}"></main>
<script src="{assets}/swagger-ui-bundle.js"></script>
<script src="{assets}/start.js"></script>
</body>
</html>
"""
