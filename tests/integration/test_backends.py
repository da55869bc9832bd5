"""Sends go on while NATS changes its password and PostgreSQL's idle connections end, with and without a word."""

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from deploy.local.postgres import FAST, Postgres
from services.kit.postgres import migrations
from tests.integration.stack import ROOT, Stack, User
from tests.integration.test_paid_answer import quiet_credits
from tests.integration.waiting import until
from tests.nats_accounts import NatsWithPassword
from tests.proxy import Proxy

# make chaos-backends runs it for five minutes.
SECONDS = float(os.environ.get("BACKENDS_SECONDS", "24"))
USERS = 8
PASSWORD_CHANGES = 5
IDLE_SESSION_TIMEOUT = "5s"
FORGET_SECONDS = 3.0
# Longer than both of the above, so that each gap finds every idle connection gone.
GAP_SECONDS = 6.0
BUSY_SECONDS = 4.0
RETRY_SECONDS = 3.0
ENDED = ("completed", "failed", "cancelled")


@dataclass(slots=True)
class Seen:
    """What the load has met."""

    accepted: list[tuple[User, str, str]] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    not_cured: list[str] = field(default_factory=list)


async def test_nothing_is_lost_while_the_backends_end_their_connections(tmp_path: Path) -> None:
    settings = {**FAST, "idle_session_timeout": IDLE_SESSION_TIMEOUT}
    server = Postgres(tmp_path / "postgres", settings=settings)
    await asyncio.to_thread(server.start)
    try:
        url = server.create_database("backends")
        for service in ("billing", "chat"):
            migrations.upgrade(ROOT / "services" / service / "migrations", service, url)
        async with Proxy(server.port, forgets_after=FORGET_SECONDS) as proxy:
            nats = NatsWithPassword(tmp_path / "nats")
            stack = Stack(tmp_path, proxy.url_of(url), nats=nats)
            await asyncio.to_thread(stack.__enter__)
            try:
                seen = await load(stack, nats, proxy)
                print(f"\n{dict(seen.answers)} answers, {proxy.forgotten} connections forgotten, {seen.not_cured}")
                assert seen.not_cured == []
                assert proxy.forgotten > 0
            finally:
                await asyncio.to_thread(stack.__exit__, None, None, None)
    finally:
        await asyncio.to_thread(server.stop)


async def load(stack: Stack, nats: NatsWithPassword, proxy: Proxy) -> Seen:
    """Users send with gaps of idleness; the password of NATS is changed and changed back meanwhile."""
    seen, users = Seen(), [stack.user(f"user{number}") for number in range(USERS)]
    ends_at = asyncio.get_running_loop().time() + SECONDS
    try:
        senders = (send_until(ends_at, user, seen) for user in users)
        await asyncio.gather(change_passwords(nats), stop_forgetting(proxy), *senders)
        for user, session, task in seen.accepted:
            await until(lambda user=user, session=session, task=task: has_ended(user, session, task), within=60.0)  # type: ignore[misc]
        await check_ledger(seen)
    finally:
        for user in users:
            await user.aclose()
    return seen


async def stop_forgetting(proxy: Proxy) -> None:
    """Half of the time the proxy forgets idle connections in silence; then PostgreSQL itself ends them, with a word."""
    await asyncio.sleep(SECONDS / 2)
    proxy.forgets_after = None


async def change_passwords(nats: NatsWithPassword) -> None:
    """Five times within the load: shut everybody out for a while, then let them in again."""
    for _ in range(PASSWORD_CHANGES):
        await asyncio.sleep(SECONDS / PASSWORD_CHANGES * 0.6)
        nats.change(password="another")
        await asyncio.sleep(min(2.0, SECONDS / PASSWORD_CHANGES * 0.3))
        nats.change()


async def send_until(ends_at: float, user: User, seen: Seen) -> None:
    """Send for some seconds, be idle for some, and so on."""
    loop = asyncio.get_running_loop()
    session = await user.new_session()
    while loop.time() < ends_at:
        busy_until = loop.time() + BUSY_SECONDS
        while loop.time() < busy_until:
            await send(user, session, seen)
            await asyncio.sleep(random.uniform(0.05, 0.3))
        await asyncio.sleep(GAP_SECONDS)


async def send(user: User, session: str, seen: Seen) -> None:
    """One send; after a 5xx the same again, three seconds later."""
    key = str(uuid4())
    answer = await try_to_send(user, session, key, seen)
    if answer.status_code >= 500:
        await asyncio.sleep(RETRY_SECONDS)
        answer = await try_to_send(user, session, key, seen)
        if answer.status_code >= 500:
            seen.not_cured.append(answer.text)
            return
    if answer.status_code in (201, 202):
        task = str(answer.json()["task_id"])
        seen.accepted.append((user, session, task))
        if answer.status_code == 202:
            await until(lambda: has_ended(user, session, task), within=60.0)


async def try_to_send(user: User, session: str, key: str, seen: Seen) -> httpx.Response:
    answer = await user.say(session, Idempotency_Key=key)
    seen.answers[answer.status_code] += 1
    return answer


async def has_ended(user: User, session: str, task: str) -> bool:
    """True once the task has ended; a poll may meet the same outages."""
    answer = await user.task(session, task)
    return answer.status_code == 200 and answer.json()["status"] in ENDED


async def check_ledger(seen: Seen) -> None:
    """Every accepted task has one answer and one charge; nothing is held."""
    for user in {user for user, _, _ in seen.accepted}:
        tasks = {task for owner, _, task in seen.accepted if owner is user}
        (session,) = {session for owner, session, _ in seen.accepted if owner is user}
        await quiet_credits(user)
        ledger = await pages(user, f"/api/workspaces/{user.workspace}/credits/usage/")
        assert sorted(row["task_id"] for row in ledger if row["kind"] == "chat") == sorted(tasks)
        messages = await pages(user, user.messages(session))
        assert sum(message["role"] == "assistant" for message in messages) == len(tasks)


async def pages(user: User, path: str) -> list[dict[str, Any]]:
    """All rows of a list."""
    rows: list[dict[str, Any]] = []
    following: str | None = f"{path}?limit=200"
    while following:
        page = (await user.get(following)).json()
        rows += page["results"]
        following = page["next"]
    return rows
