"""Postgres or billing away: every route says so at once, keeps nothing, and works again as soon as they are back."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from deploy.local.postgres import CRASH_SAFE
from services.kit.postgres import migrations
from tests.integration.stack import Stack, User
from tests.integration.test_paid_answer import quiet_credits
from tests.integration.waiting import until
from tests.servers import Postgres, new_postgres

SERVICES = Path(__file__).parent.parent.parent / "services"
PATIENCE_SECONDS = 3.0


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that these tests may kill."""
    with new_postgres(tmp_path_factory.mktemp("own_postgres"), settings=CRASH_SAFE) as server:
        yield server


@pytest.fixture(scope="module")
def fragile(own_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system on it."""
    url = own_postgres.create_database("fragile")
    for folder in sorted(SERVICES.glob("*/migrations")):
        if (folder / "env.py").exists():
            migrations.upgrade(folder, folder.parent.name, url)
    with Stack(tmp_path_factory.mktemp("fragile"), url) as running:
        yield running


async def refused(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> None:
    """503 with Retry-After, in time."""
    started_at = time.monotonic()
    response = await client.request(method, path, **options)
    took = time.monotonic() - started_at
    assert response.status_code == 503, (method, path, response.status_code, response.text)
    assert int(response.headers["retry-after"]) >= 1
    assert took < PATIENCE_SECONDS, (method, path, took)
    if response.headers["content-type"] != "text/html; charset=utf-8":
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] in ("unavailable", "not_ready")


def requests_of(user: User, session: str, message: str, link: str) -> list[tuple[str, str, dict[str, Any]]]:
    """All that needs chat's tables."""
    chat = f"{user.chats}{session}/"
    return [
        ("GET", user.chats, {}),
        ("GET", f"{user.chats}?search=words", {}),
        ("POST", user.chats, {"json": {}}),
        ("POST", user.chats, {"json": {}, "headers": {"Idempotency-Key": "while it is away"}}),
        ("GET", chat, {}),
        ("PUT", chat, {"json": {"name": "x"}}),
        ("PATCH", chat, {"json": {"name": "x"}}),
        ("DELETE", chat, {}),
        ("POST", f"{chat}share/", {"json": {"user_id": "bob"}}),
        ("POST", f"{chat}share/", {"json": {"user_id": "bob"}, "headers": {"Idempotency-Key": "while it is away"}}),
        ("GET", f"{chat}shares/", {}),
        ("POST", f"{chat}revoke-share/", {"json": {"user_id": "bob"}}),
        ("POST", f"{chat}toggle-public/", {}),
        ("GET", user.messages(session), {}),
        ("POST", user.messages(session), {"json": {"role": "user", "content": "lost?"}}),
        ("POST", f"{user.messages(session)}regenerate/", {}),
        ("GET", f"{user.messages(session)}{message}/", {}),
        ("DELETE", f"{user.messages(session)}{message}/", {}),
        ("GET", f"{user.messages(session)}agent-task-status/{uuid4()}/", {}),
        ("GET", f"/api/chats/shared/{link}/", {}),
        ("GET", f"/api/chats/shared/{link}/", {"headers": {"Accept": "text/html"}}),
        ("GET", f"/api/workspaces/{user.workspace}/credits/", {}),
        ("GET", f"/api/workspaces/{user.workspace}/credits/usage/", {}),
        ("POST", f"/api/workspaces/{user.workspace}/credits/grants/", {"json": {"amount": "1"}}),
        ("GET", "/api/users/credit-usage/", {}),
    ]


async def seen(user: User, session: str) -> list[Any]:
    """What an outage must not change."""
    chat = f"{user.chats}{session}/"
    paths = (
        user.chats,
        chat,
        user.messages(session),
        f"{chat}shares/",
        f"/api/workspaces/{user.workspace}/credits/usage/",
    )
    return [(await user.get(path)).json() for path in paths]


async def test_while_postgres_is_away_everything_is_503_and_nothing_is_kept(
    fragile: Stack, own_postgres: Postgres
) -> None:
    async with fragile.user() as alice:
        session = await alice.new_session()
        turn = (await alice.say(session)).json()
        link = (await alice.post(f"{alice.chats}{session}/toggle-public/")).json()["shareable_link_id"]
        await quiet_credits(alice)
        before = await seen(alice, session)
        await asyncio.to_thread(own_postgres.kill)
        try:
            for method, path, options in requests_of(alice, session, turn["user_message"]["id"], link):
                await refused(alice, method, path, **options)
            assert (await alice.get("/healthz")).status_code == 200
        finally:
            await asyncio.to_thread(own_postgres.start)

        async def is_back() -> bool:
            return (await alice.get(f"{alice.chats}{session}/")).status_code == 200

        await until(is_back)
        assert await seen(alice, session) == before
        assert (await alice.say(session)).status_code == 201


async def test_while_billing_is_away_nothing_is_opened_or_sent_and_the_rest_works(fragile: Stack) -> None:
    async with fragile.user() as alice:
        session = await alice.new_session()
        turn = (await alice.say(session)).json()
        await quiet_credits(alice)
        before = await seen(alice, session)
        for process in fragile.all_of("billing"):
            process.kill()
        try:
            credits_path = f"/api/workspaces/{alice.workspace}/credits/"
            for method, path, options in (
                ("POST", alice.chats, {"json": {}}),
                ("POST", alice.messages(session), {"json": {"role": "user", "content": "lost?"}}),
                ("POST", f"{alice.messages(session)}regenerate/", {}),
                ("GET", credits_path, {}),
                ("GET", f"{credits_path}usage/", {}),
                ("POST", f"{credits_path}grants/", {"json": {"amount": "1"}}),
                ("GET", "/api/users/credit-usage/", {}),
                ("GET", "/api/models/", {}),
                ("GET", "/readyz", {}),
            ):
                await refused(alice, method, path, **options)
            for path in (
                alice.chats,
                alice.messages(session),
                f"{alice.messages(session)}{turn['ai_messages'][0]['id']}/",
            ):
                assert (await alice.get(path)).status_code == 200
        finally:
            for process in fragile.all_of("billing"):
                process.start()

        async def is_back() -> bool:
            return (await alice.get("/readyz")).status_code == 200

        await until(is_back)
        assert await seen(alice, session) == before

        async def is_accepted() -> bool:
            return (await alice.say(session)).status_code == 201

        await until(is_accepted)
        await quiet_credits(alice)


async def test_chat_is_ready_only_with_postgres(fragile: Stack, own_postgres: Postgres) -> None:
    async def readiness() -> int:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{fragile.ops_urls['chat0']}/readyz", timeout=5)).status_code

    async def ready() -> bool:
        return await readiness() == 200

    async def not_ready() -> bool:
        return await readiness() == 503

    assert await ready()
    own_postgres.kill()
    await until(not_ready, within=30, saying="chat is not ready")
    own_postgres.start()
    await until(ready, within=30, saying="chat is ready again")
    fragile.wait_until_ready()
