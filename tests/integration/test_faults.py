"""Two of everything, and the worst that can happen to them: nothing accepted is lost, nothing is paid twice."""

import asyncio
from decimal import Decimal
from typing import Any

import httpx
import nats

from tests.integration.stack import Stack, User
from tests.integration.test_paid_answer import quiet_credits
from tests.integration.waiting import until


async def accepted(user: User, session: str) -> str:
    """Send asynchronously until it is accepted; the task's id."""
    response = await user.say(session, Prefer="respond-async")
    assert response.status_code == 202, response.text
    return str(response.json()["task_id"])


async def completed(user: User, session: str, task_id: str, *, within: float = 40) -> dict[str, Any]:
    """The task once it has completed; it must not end otherwise."""

    async def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = (await user.task(session, task_id)).json()
        assert found["status"] in ("processing", "completed"), found
        return found if found["status"] == "completed" else None

    found = await until(ended, within=within, saying=f"{task_id} completed")
    assert found is not None
    return found


async def charges(user: User) -> list[Decimal]:
    """What the workspace was charged, entry by entry."""
    listed = await user.get(f"/api/workspaces/{user.workspace}/credits/usage/?limit=200")
    return [Decimal(entry["amount"]) for entry in listed.json()["results"] if entry["kind"] == "chat"]


async def test_a_task_sent_to_one_gateway_is_polled_at_the_other(pair: Stack) -> None:
    async with pair.user() as here, pair.user(workspace=here.workspace, gateway=1) as there:
        session = await here.new_session()
        task_id = await accepted(here, session)
        await completed(there, session, task_id)


async def test_load_over_two_of_each_is_answered_once_and_charged_once(pair: Stack) -> None:
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as other:
        sessions = await asyncio.gather(*(alice.new_session() for _ in range(40)))
        responses = await asyncio.gather(
            *((alice if number % 2 else other).say(session) for number, session in enumerate(sessions))
        )
        assert {response.status_code for response in responses} == {201}, {r.text for r in responses}
        balance = await quiet_credits(alice)
        charged = sum((Decimal(response.json()["credits_charged"]) for response in responses), Decimal(0))
        assert Decimal(balance["balance"]) == 10 - charged
        assert len(await charges(alice)) == 40


async def test_wiping_jetstream_under_load_loses_no_accepted_task(pair: Stack) -> None:
    async with pair.user() as alice:
        sessions = await asyncio.gather(*(alice.new_session() for _ in range(60)))
        pair.script("openai", default={"first_token_delay_ms": 200})

        async def send(number: int, session: str) -> str:
            await asyncio.sleep(number * 0.05)
            return await accepted(alice, session)

        sending = asyncio.gather(*(send(number, session) for number, session in enumerate(sessions)))
        client = await nats.connect(pair.nats.url)
        jetstream = client.jetstream()
        for stream in await jetstream.streams_info():
            assert stream.config.name is not None
            await jetstream.delete_stream(stream.config.name)
        await client.close()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(pair.nats.kill)
        await asyncio.to_thread(pair.nats.wipe)
        await asyncio.sleep(1)
        await asyncio.to_thread(pair.nats.start)
        tasks = await sending
        for session, task_id in zip(sessions, tasks, strict=True):
            found = await completed(alice, session, task_id, within=60)
            assert len(found["ai_messages"]) == 1
        await quiet_credits(alice)
        assert len(await charges(alice)) == 60


async def test_while_nats_is_down_a_sync_send_is_202_and_runs_when_it_is_back(pair: Stack) -> None:
    async with pair.user() as alice:
        session = await alice.new_session()
        await asyncio.to_thread(pair.nats.kill)
        try:

            async def accepted_only() -> httpx.Response | None:
                response = await alice.say(session)
                return response if response.status_code == 202 else None

            response = await until(accepted_only)
            assert response is not None
            task_id = response.json()["task_id"]
            assert (await alice.task(session, task_id)).json()["status"] == "processing"
        finally:
            await asyncio.to_thread(pair.nats.start)
        await completed(alice, session, task_id)


async def test_killed_agents_leave_their_tasks_to_others_one_answer_one_charge(pair: Stack) -> None:
    async with pair.user() as alice:
        sessions = await asyncio.gather(*(alice.new_session() for _ in range(4)))
        pair.script("openai", default={"tokens": 60, "token_delay_ms": 50})
        tasks = [await accepted(alice, session) for session in sessions]

        async def running() -> bool:
            found = [(await alice.task(session, task)).json() for session, task in zip(sessions, tasks, strict=True)]
            return all(task["attempt"] == 1 for task in found)

        await until(running)
        pair["agent0"].kill()
        pair["agent0"].start()
        found = [await completed(alice, s, t, within=32) for s, t in zip(sessions, tasks, strict=True)]
        assert all(len(task["ai_messages"]) == 1 for task in found)
        await quiet_credits(alice)
        assert len(await charges(alice)) == 4


async def test_kills_of_chat_and_billing_under_load_lose_nothing(pair: Stack) -> None:
    async with pair.user() as alice:
        sessions = await asyncio.gather(*(alice.new_session() for _ in range(60)))

        async def send(number: int, session: str) -> str | None:
            await asyncio.sleep(number * 0.05)
            response = await alice.say(session, Prefer="respond-async", Idempotency_Key=f"k{number}")
            for _ in range(20):
                if response.status_code == 202 or response.status_code == 201:
                    break
                assert response.status_code in (409, 503), response.text
                await asyncio.sleep(0.5)
                response = await alice.say(session, Prefer="respond-async", Idempotency_Key=f"k{number}")
            return str(response.json()["task_id"])

        sending = asyncio.gather(*(send(number, session) for number, session in enumerate(sessions)))
        for name in ("chat0", "billing0", "chat1", "billing1"):
            await asyncio.sleep(0.6)
            pair[name].kill()
            pair[name].start()
        tasks = await sending
        for session, task_id in zip(sessions, tasks, strict=True):
            assert task_id is not None
            await completed(alice, session, task_id, within=60)
        await quiet_credits(alice)
        assert len(await charges(alice)) == 60
