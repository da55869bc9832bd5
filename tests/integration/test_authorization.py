"""Who may do what: every route of the gateway, asked by everyone.

A route without a row here fails the first test: add one line to EXPECTED, and what the request needs to REQUESTS.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute

from gateway.app import create_app
from gateway.cors import Cors
from gateway.parts import Parts
from tests.audio import SPOKEN
from tests.integration.stack import Stack, User
from tests.integration.waiting import until

Route = tuple[str, str]

SESSIONS = "/api/workspaces/{workspace_id}/chats/"
SESSION = f"{SESSIONS}{{session_id}}/"
MESSAGES = f"{SESSION}messages/"
MESSAGE = f"{MESSAGES}{{message_id}}/"
TASK = f"{MESSAGES}agent-task-status/{{task_id}}/"
CREDITS = "/api/workspaces/{workspace_id}/credits/"
TRANSLATE = "/api/workspaces/{workspace_id}/translate/"

# owner: of the session, a member of its workspace. write, read: members with such a share. other: a member without one.
# viewer: has that role, and a write share. admin: of the workspace. elsewhere: owner of another workspace.
# guest: member of nothing, with a write share. anonymous: without a token.
ACTORS = ("owner", "write", "read", "other", "viewer", "admin", "elsewhere", "guest", "anonymous")
EXPECTED: Mapping[Route, str] = {
    # route                                    owner write read other viewer admin elsewhere guest anonymous
    ("GET", SESSIONS): "                         200   200  200   200    200   200       404   200       401",
    ("POST", SESSIONS): "                        201   201  201   201    403   201       404   404       401",
    ("GET", SESSION): "                          200   200  200   404    200   404       404   200       401",
    ("PUT", SESSION): "                          200   403  403   404    403   404       404   403       401",
    ("PATCH", SESSION): "                        200   403  403   404    403   404       404   403       401",
    ("DELETE", SESSION): "                       204   403  403   404    403   204       404   403       401",
    ("POST", f"{SESSION}share/"): "              201   403  403   404    403   404       404   403       401",
    ("GET", f"{SESSION}shares/"): "              200   403  403   404    403   404       404   403       401",
    ("POST", f"{SESSION}revoke-share/"): "       204   403  403   404    403   404       404   403       401",
    ("POST", f"{SESSION}toggle-public/"): "      200   403  403   404    403   404       404   403       401",
    ("GET", MESSAGES): "                         200   200  200   404    200   404       404   200       401",
    ("POST", MESSAGES): "                        201   201  403   404    403   404       404   201       401",
    ("POST", f"{MESSAGES}regenerate/"): "        201   201  403   404    403   404       404   201       401",
    ("GET", MESSAGE): "                          200   200  200   404    200   404       404   200       401",
    ("DELETE", MESSAGE): "                       204   403  403   404    403   404       404   403       401",
    ("GET", TASK): "                             200   200  200   404    200   404       404   200       401",
    ("DELETE", TASK): "                          200   200  403   404    403   404       404   200       401",
    ("GET", CREDITS): "                          200   200  200   200    200   200       404   404       401",
    ("GET", f"{CREDITS}usage/"): "               200   200  200   200    200   200       404   404       401",
    ("POST", f"{CREDITS}grants/"): "             403   403  403   403    403   201       404   404       401",
    ("GET", "/api/users/credit-usage/"): "       200   200  200   200    200   200       200   200       401",
    ("GET", TRANSLATE): "                        200   200  200   200    403   200       404   404       401",
    ("POST", "/api/transcribe-audio/"): "        200   200  200   200    403   200       404   404       401",
    ("GET", "/api/models/"): "                   200   200  200   200    200   200       200   200       401",
    ("GET", "/api/chats/shared/{link_id}/"): "   200   200  200   200    200   200       200   200       200",
    ("GET", "/healthz"): "                       200   200  200   200    200   200       200   200       200",
    ("GET", "/readyz"): "                        200   200  200   200    200   200       200   200       200",
    ("GET", "/api/openapi.json"): "              200   200  200   200    200   200       200   200       200",
    ("GET", "/api/docs"): "                      200   200  200   200    200   200       200   200       200",
    ("GET", "/api/docs/start.js"): "             200   200  200   200    200   200       200   200       200",
    ("GET", "/api/docs/swagger-ui.css"): "       200   200  200   200    200   200       200   200       200",
    ("GET", "/api/docs/swagger-ui-bundle.js"): " 200   200  200   200    200   200       200   200       200",
}
# What a request carries beside its path, in httpx's words.
REQUESTS: Mapping[Route, Mapping[str, Any]] = {
    ("POST", SESSIONS): {"json": {"name": "Another"}},
    ("PUT", SESSION): {"json": {"name": "Replaced"}},
    ("PATCH", SESSION): {"json": {"name": "Changed"}},
    ("POST", f"{SESSION}share/"): {"json": {"user_id": "mallory", "permission": "write"}},
    ("POST", f"{SESSION}revoke-share/"): {"json": {"user_id": "read"}},
    ("POST", MESSAGES): {"json": {"role": "user", "content": "And of Spain?"}},
    ("POST", f"{CREDITS}grants/"): {"json": {"amount": "1"}},
    ("GET", TRANSLATE): {"params": {"text": "Good morning", "target": "fr"}},
    ("POST", "/api/transcribe-audio/"): {
        "data": {"workspace_id": "{workspace_id}"},
        "files": {"audio_file": ("recording", SPOKEN.read_bytes())},
    },
}


def routes() -> set[Route]:
    """All that the gateway serves."""
    app = create_app(cast("Parts", None), draining=asyncio.Event(), cors=Cors())
    found: set[Route] = set()
    for route in app.routes:
        methods = getattr(route, "methods", None) or {"GET"}
        path = route.path_format if isinstance(route, APIRoute) else str(getattr(route, "path", route))
        found |= {(method, path) for method in methods if method != "HEAD"}
    return found


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    assert routes() - set(EXPECTED) == set(), "say in EXPECTED who may call these"
    assert set(EXPECTED) - routes() == set(), "these are not served"


@dataclass
class Subject:
    """A session with all that routes name: shared, published, answered."""

    ids: dict[str, str]


@dataclass
class World:
    """One workspace and everyone around it."""

    actors: Mapping[str, User]
    workspace: str

    @property
    def owner(self) -> User:
        return self.actors["owner"]

    async def subject(self) -> Subject:
        """A fresh session of the owner's."""
        owner = self.owner
        session = await owner.new_session(name="Secret plans")
        for name, permission in (("write", "write"), ("read", "read"), ("viewer", "write"), ("guest", "write")):
            shared = await owner.post(
                f"{owner.chats}{session}/share/", json={"user_id": name, "permission": permission}
            )
            assert shared.status_code == 201, shared.text
        published = await owner.post(f"{owner.chats}{session}/toggle-public/")
        turn = (await owner.say(session, "What is the capital of France?")).json()
        return Subject(
            {
                "workspace_id": self.workspace,
                "session_id": session,
                "message_id": turn["user_message"]["id"],
                "task_id": turn["task_id"],
                "link_id": published.json()["shareable_link_id"],
            }
        )

    async def look(self, subject: Subject) -> list[bytes]:
        """What the owner sees of it."""
        path = SESSION.format(**subject.ids)
        seen = [await self.owner.get(f"{path}{part}") for part in ("", "shares/", "messages/")]
        seen.append(await self.owner.get(CREDITS.format(**subject.ids)))
        return [response.content for response in seen]

    async def ask(self, actor: str, route: Route, ids: Mapping[str, str]) -> httpx.Response:
        """One request of one actor. The same request id, so that answers can be compared whole."""
        method, path = route
        carried = dict(REQUESTS.get(route, {}))
        if "data" in carried:
            carried["data"] = {name: value.format(**ids) for name, value in carried["data"].items()}
        return await self.actors[actor].request(method, path.format(**ids), headers={"X-Request-Id": "same"}, **carried)


@pytest.fixture
async def world(stack: Stack) -> AsyncIterator[World]:
    """Everyone, with a token of their own; answers are such that a translation can be read from them."""
    stack.script("openai", default={"text": json.dumps({"source": "en", "translated_text": "Bonjour"})})
    workspace = str(uuid4())
    async with AsyncExitStack() as users:
        roles = {"viewer": "viewer", "admin": "admin"}
        actors = {
            name: await users.enter_async_context(
                stack.user(name, workspace=workspace, role=None if name == "guest" else roles.get(name, "member"))
            )
            for name in ACTORS
            if name != "elsewhere"
        }
        actors["elsewhere"] = await users.enter_async_context(stack.user("elsewhere", role="owner"))
        del actors["anonymous"].headers["Authorization"]
        yield World(actors, workspace)


def _unknown(ids: Mapping[str, str]) -> dict[str, str]:
    """Ids of nothing, but in the same workspace."""
    return {name: str(uuid4()) for name in ids} | {"workspace_id": ids["workspace_id"]}


async def _is_quiet(world: World, subject: Subject) -> bool:
    path = SESSION.format(**subject.ids)
    found = (await world.owner.get(path)).json()
    return bool(found["active_task_id"] is None) and float((await world.owner.credits())["held"]) == 0


@pytest.mark.parametrize("route", sorted(EXPECTED), ids=" ".join)
async def test_everyone_gets_what_the_table_says_and_404_tells_nothing(world: World, route: Route) -> None:
    expected = dict(zip(ACTORS, map(int, EXPECTED[route].split()), strict=True))
    subject, changes = await world.subject(), route[0] != "GET"
    outcomes: dict[str, int] = {}
    for actor in ACTORS:
        if changes:
            await until(partial(_is_quiet, world, subject))
        before = await world.look(subject) if changes else []
        response = await world.ask(actor, route, subject.ids)
        outcomes[actor] = response.status_code
        if not changes and route != ("GET", TRANSLATE):
            head = await world.ask(actor, ("HEAD", route[1]), subject.ids)
            assert (head.status_code, head.content) == (response.status_code, b"")
        if response.status_code == 404:
            unknown = await world.ask(actor, route, _unknown(subject.ids))
            assert unknown.content == response.content, actor
            assert unknown.headers.raw == response.headers.raw or _headers(unknown) == _headers(response), actor
        if response.status_code >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert set(response.json()) == {"type", "title", "status", "detail", "code", "request_id"}
            assert not changes or await world.look(subject) == before, f"{actor} was refused and changed something"
        elif changes:
            subject = await world.subject()
    assert outcomes == expected


def _headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name != "date"}


async def test_lists_show_what_is_ones_own_or_shared_and_nothing_else(world: World) -> None:
    subject = await world.subject()
    session = subject.ids["session_id"]
    expected = {"owner": "owner", "write": "write", "read": "read", "viewer": "write", "guest": "write"}
    for actor in ACTORS:
        if actor in ("elsewhere", "anonymous"):
            continue
        for query in ("", "?scope=all", "?scope=owned", "?scope=shared", "?search=capital", "?status=active"):
            listed = await world.actors[actor].get(f"{SESSIONS.format(**subject.ids)}{query}")
            if actor == "guest" and query in ("?search=capital",):
                assert listed.status_code == 404
                continue
            assert listed.status_code == 200, (actor, query, listed.text)
            found = {one["id"]: one for one in listed.json()["results"]}
            owned = actor == "owner"
            wanted = {
                "?scope=owned": owned,
                "?scope=shared": not owned and actor in expected,
                "?search=capital": owned,
            }.get(query, actor in expected)
            assert (session in found) == wanted, (actor, query)
            if wanted:
                assert found[session]["my_permission"] == expected[actor]
                assert found[session]["is_shared"] is True


async def test_a_revoked_share_is_dead_at_once(world: World) -> None:
    subject = await world.subject()
    path = SESSION.format(**subject.ids)
    for actor in ("write", "read", "viewer", "guest"):
        assert (await world.actors[actor].get(path)).status_code == 200
        revoked = await world.owner.post(f"{path}revoke-share/", json={"user_id": actor})
        assert revoked.status_code == 204
        for route in (("GET", SESSION), ("GET", MESSAGES), ("GET", TASK), ("DELETE", TASK), ("POST", MESSAGES)):
            assert (await world.ask(actor, route, subject.ids)).status_code == 404, (actor, route)
        assert (await world.owner.post(f"{path}revoke-share/", json={"user_id": actor})).status_code == 404
