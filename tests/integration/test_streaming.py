"""Streams: tokens as they come, a text that survives whatever happens to the stream, a stop that stops."""

import asyncio
import os
import random
import re
import signal
import threading
import time
from decimal import Decimal
from typing import Any

import httpx
import nats
import pytest

from services.kit.bus import EVENTS_STREAM
from services.kit.tokens import estimate_tokens
from tests.integration.following import EVENTS, Reader, ask, follow, following, read, sending
from tests.integration.stack import ROOT, Stack, User
from tests.integration.test_paid_answer import prices, quiet_credits
from tests.integration.waiting import until

# More of them by hand: STREAM_CUTS=200 CANCEL_RACES=170.
CUTS = int(os.environ.get("STREAM_CUTS", "20"))
RACES = int(os.environ.get("CANCEL_RACES", "20"))
RACES_AT_ONCE = 20


async def stored_answer(user: User, path: str) -> str:
    """What the task's answer is in the end."""
    task: dict[str, Any] = (await user.get(path)).json()
    assert task["status"] in ("completed", "cancelled"), task
    return text_of(task)


def text_of(task: dict[str, Any]) -> str:
    """What a task has stored of its answer."""
    return "".join(message["content"] for message in task["ai_messages"] if message["role"] == "assistant")


async def ledger(user: User) -> list[dict[str, Any]]:
    """The workspace's charges."""
    entries: list[dict[str, Any]] = []
    path = f"/api/workspaces/{user.workspace}/credits/usage/?limit=200"
    while path:
        page = (await user.get(path)).json()
        entries += [entry for entry in page["results"] if entry["kind"] == "chat"]
        path = page["next"]
    return entries


def words(count: int) -> str:
    """What the provider fake says when it is asked for so many tokens."""
    return "".join(f"word{number} " for number in range(1, count + 1))


def assert_whole(reader: Reader, text: str) -> None:
    """The text is there, the events in order, and one of them the last."""
    assert reader.text == text
    assert sum(kind in ("completed", "failed", "cancelled") for kind in reader.kinds) == 1
    assert reader.end is reader.events[-1]
    places = [event.place for event in reader.events]
    assert places == sorted(set(places)), places


async def ended(user: User, path: str) -> dict[str, Any]:
    """The task once it has ended."""

    async def found() -> dict[str, Any] | None:
        task: dict[str, Any] = (await user.get(path)).json()
        return task if task["status"] != "processing" else None

    task = await until(found, within=30, saying="the task's end")
    assert task is not None
    return task


async def purge(stack: Stack) -> None:
    """Forget every event."""
    client = await nats.connect(stack.nats.url)
    await client.jetstream().purge_stream(EVENTS_STREAM)
    await client.close()


async def test_a_send_that_accepts_events_is_streamed_to_its_stored_end(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        async with sending(alice, session, "What is the capital of France?") as response:
            reader = await read(response)
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert_whole(reader, "The capital of France is Paris.")
        saved, end = reader.events[0], reader.end
        assert (saved.kind, saved.data["user_message"]["content"]) == ("message", "What is the capital of France?")
        assert end is not None
        assert end.kind == "completed"
        assert set(end.data) == {"task_id", "user_message", "ai_messages", "usage", "credits_charged", "warnings"}
        assert end.data["ai_messages"][0]["content"] == reader.text
        path = response.headers["Location"]
        assert path == f"{alice.messages(session)}agent-task-status/{saved.data['task_id']}/"
        task = (await alice.get(path)).json()
        assert (task["status"], task["credits"]["charged"]) == ("completed", end.data["credits_charged"])
        await quiet_credits(alice)


async def test_what_is_called_a_stream_is_one(stack: Stack) -> None:
    stack.script("openai", default={"tokens": 40, "token_delay_ms": 100, "first_token_delay_ms": 300})
    async with stack.user() as alice:
        session = await alice.new_session()
        reader = await ask(alice, session)
        assert_whole(reader, words(40))
        saved, deltas = reader.events[0], reader.of("delta")
        assert deltas[0].came_at - saved.came_at < 0.3 + 0.5
        assert deltas[-1].came_at - deltas[0].came_at > 3
        assert len(deltas) > 30


async def test_a_finished_run_is_replayed_by_any_gateway(pair: Stack) -> None:
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:
        session = await alice.new_session()
        async with sending(alice, session) as response:
            live = await read(response)
        path = response.headers["Location"]
        again = await follow(there, path)
        assert [(event.id, event.kind, event.data) for event in again.events] == [
            (event.id, event.kind, event.data) for event in live.events
        ]
        for event in live.events[:-1]:
            async with following(there, path, event.id) as response:
                rest = await read(response)
            after = live.events.index(event) + 1
            assert [(e.id, e.data) for e in rest.events] == [(e.id, e.data) for e in live.events[after:]]


async def test_clients_cut_at_random_bytes_reassemble_the_text_through_other_gateways(pair: Stack) -> None:
    pair.script("openai", default={"tokens": 60, "token_delay_ms": 20, "first_token_delay_ms": 50})
    chance = random.Random(CUTS)
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:

        async def one(number: int) -> int:
            session = await alice.new_session()
            async with sending(alice, session) as response:
                reader = await read(response, most_bytes=chance.randrange(1, 4_000))
            path, cuts = response.headers["Location"], 1
            while reader.end is None:
                user = there if (number + cuts) % 2 else alice
                async with following(user, path, reader.last_id) as response:
                    await read(response, reader.connected_again(), most_bytes=chance.randrange(1, 4_000))
                cuts += 1
            assert_whole(reader, words(60))
            assert "reset" not in reader.kinds
            return cuts - 1

        cuts = 0
        while cuts < CUTS:
            cuts += sum(await asyncio.gather(*(one(number) for number in range(10))))


async def test_a_killed_agents_stream_is_reset_and_told_by_the_next(pair: Stack) -> None:
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:
        pair.script("openai", default={"tokens": 100, "token_delay_ms": 50})
        sessions = await asyncio.gather(*(alice.new_session() for _ in range(4)))
        readers = [Reader() for _ in sessions]

        async def one(number: int) -> None:
            async with sending(alice, sessions[number]) as response:
                await read(response, readers[number], most_bytes=chance_bytes[number])
            if readers[number].end is None:
                await follow(there, response.headers["Location"], readers[number])

        chance_bytes = [1_000, 2_000, None, None]
        reading = [asyncio.create_task(one(number)) for number in range(4)]

        async def all_began() -> bool:
            return all(reader.text for reader in readers)

        await until(all_began)
        for name in ("agent0", "agent1"):
            pair[name].kill()
        pair.script("openai", default={"tokens": 100, "token_delay_ms": 5})
        for name in ("agent0", "agent1"):
            pair[name].start()
        await asyncio.gather(*reading)
        for reader in readers:
            assert_whole(reader, words(100))
            assert "reset" in reader.kinds
            assert reader.end is not None
            assert reader.end.place[0] == 2
        await quiet_credits(alice)


async def test_when_the_events_are_gone_the_stored_answer_is_told(pair: Stack) -> None:
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:
        session = await alice.new_session()
        async with sending(alice, session) as response:
            seen = await read(response, most_bytes=900)
        path = response.headers["Location"]
        await ended(alice, path)
        await purge(pair)
        fresh = await follow(there, path)
        assert fresh.kinds == ["message", "reset", "delta", "completed"]
        assert_whole(fresh, "The capital of France is Paris.")
        resumed = await follow(there, path, seen)
        assert resumed.kinds[-3:] == ["reset", "delta", "completed"]
        assert_whole(resumed, "The capital of France is Paris.")
        whole = b""
        async with following(alice, path) as response:
            async for data in response.aiter_raw():
                whole += data
        for cut in range(0, len(whole), 7):
            reader = Reader()
            reader.feed(whole[:cut])
            if reader.end is None:
                await follow(there, path, reader)
                assert_whole(reader, "The capital of France is Paris.")


async def test_a_run_whose_events_vanish_midway_still_ends_with_its_stored_text(pair: Stack) -> None:
    pair.script("openai", default={"tokens": 60, "token_delay_ms": 40})
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:
        session = await alice.new_session()
        async with sending(alice, session) as response:
            path = response.headers["Location"]
            staying = asyncio.create_task(read(response))
            async with following(there, path) as cut:
                reader = await read(cut, most_bytes=1_500)
            await purge(pair)
            await follow(there, path, reader)
            late = await follow(there, path)
            stayed = await staying
        for one in (stayed, reader, late):
            assert_whole(one, words(60))
        assert "reset" not in stayed.kinds


async def test_streams_outlive_a_nats_server_that_is_killed_and_comes_back_empty(pair: Stack) -> None:
    pair.script("openai", default={"tokens": 80, "token_delay_ms": 60})
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:
        session = await alice.new_session()
        async with sending(alice, session) as response:
            path, reader = response.headers["Location"], Reader()
            reading = asyncio.create_task(read(response, reader))

            async def began() -> bool:
                return len(reader.of("delta")) > 5

            await until(began)
            await asyncio.to_thread(pair.nats.kill)
            await asyncio.to_thread(pair.nats.wipe)
            await asyncio.to_thread(pair.nats.start)
            await reading
        assert_whole(reader, words(80))
        assert len(reader.of("delta")) > 20
        assert_whole(await follow(there, path), words(80))
        await quiet_credits(alice)


async def test_a_cancel_through_one_gateway_stops_what_is_followed_on_the_other(pair: Stack) -> None:
    pair.script("openai", default={"tokens": 2_000, "token_delay_ms": 20})
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:
        session = await alice.new_session()
        async with sending(alice, session, "Count, please.") as response:
            path, reader = response.headers["Location"], Reader()
            reading = asyncio.create_task(read(response, reader))

            async def began() -> bool:
                return len(reader.of("delta")) > 20

            await until(began)
            began_at = time.monotonic()
            cancelled = await there.delete(path)

            async def hung_up() -> bool:
                return any("Count, please." in str(r["body"]) and r["closed_early"] for r in pair.requests("openai"))

            await until(hung_up, within=2 - (time.monotonic() - began_at), saying="the provider's connection closed")
            await reading
        assert cancelled.status_code == 200
        task = cancelled.json()
        assert reader.end is not None
        assert (reader.end.kind, reader.end.data) == ("cancelled", task)
        assert (task["status"], task["ai_messages"][0]["finish_reason"]) == ("cancelled", "cancelled")
        assert_whole(reader, task["ai_messages"][0]["content"])
        assert words(2_000).startswith(reader.text)
        assert task["usage"]["output_tokens"] == estimate_tokens(len(reader.text.encode()))
        per_input, per_output = await prices(alice, "gpt-4o-mini")
        cost = task["usage"]["input_tokens"] * per_input + task["usage"]["output_tokens"] * per_output
        assert Decimal(task["credits"]["charged"]) == cost
        assert Decimal((await quiet_credits(alice))["balance"]) == 10 - cost
        again = await follow(there, path)
        assert (again.text, again.kinds[-1]) == (reader.text, "cancelled")
        assert (await alice.delete(path)).json() == task


@pytest.mark.parametrize("agents", ["alive", "stopped", "dead"])
@pytest.mark.timeout(120 + 2 * RACES)
async def test_a_cancel_that_races_the_end_finds_one_end_one_charge_and_no_hold(pair: Stack, agents: str) -> None:
    pair.script("openai", default={"tokens": 12, "token_delay_ms": 15})
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:

        async def race(after_seconds: float, ready: asyncio.Event) -> tuple[str, str, dict[str, Any]]:
            session = await alice.new_session()
            async with sending(alice, session) as response:
                path = response.headers["Location"]
                reading = asyncio.create_task(read(response))
                await asyncio.sleep(after_seconds)
                await ready.wait()
                cancelled = await there.delete(path)
                reader = await reading
            assert cancelled.status_code == 200, cancelled.text
            task: dict[str, Any] = cancelled.json()
            assert reader.end is not None
            assert reader.end.kind == task["status"] in ("completed", "cancelled")
            assert_whole(reader, text_of(task))
            return session, path, task

        async def races(count: int) -> list[tuple[str, str, dict[str, Any]]]:
            ready = asyncio.Event()
            racing = [asyncio.create_task(race(random.uniform(0.0, 0.35), ready)) for _ in range(count)]
            if agents == "alive":
                ready.set()
                return await asyncio.gather(*racing)
            await asyncio.sleep(random.uniform(0.1, 0.6))
            both = [pair["agent0"], pair["agent1"]]
            for agent in both:
                agent.send(signal.SIGSTOP if agents == "stopped" else signal.SIGKILL)
            ready.set()
            found = await asyncio.gather(*racing)
            for agent in both:
                if agents == "stopped":
                    agent.send(signal.SIGCONT)
                else:
                    agent.kill()
                    agent.start()
            return found

        found = [one for _ in range(0, RACES, RACES_AT_ONCE) for one in await races(min(RACES, RACES_AT_ONCE))]
        balance = await quiet_credits(alice)
        charges: dict[str, Decimal] = {}
        for session, path, task in found:
            assert (await alice.get(path)).json() == task  # whatever a stopped agent has said since
            answers = (await alice.get(alice.messages(session))).json()["results"][1:]
            assert answers == task["ai_messages"]
            charges[task["task_id"]] = Decimal(task["credits"]["charged"])
        entries = await ledger(alice)
        assert {entry["task_id"]: -Decimal(entry["amount"]) for entry in entries} == {
            task_id: charge for task_id, charge in charges.items() if charge
        }
        assert len(entries) == len({entry["task_id"] for entry in entries})
        assert Decimal(balance["balance"]) == 10 - sum(charges.values())


async def test_a_client_that_goes_away_stops_nothing(stack: Stack) -> None:
    stack.script("openai", default={"tokens": 30, "token_delay_ms": 20})
    async with stack.user() as alice:
        session = await alice.new_session()
        async with sending(alice, session) as response:
            await read(response, most_bytes=700)
        path = response.headers["Location"]
        assert (await ended(alice, path))["status"] == "completed"
        assert await stored_answer(alice, path) == words(30)


async def test_a_drained_gateway_sends_its_streams_to_another_and_nothing_is_lost(pair: Stack) -> None:
    pair.script("openai", default={"tokens": 120, "token_delay_ms": 40})
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:
        session = await alice.new_session()
        async with sending(alice, session) as response:
            path, reader = response.headers["Location"], Reader()
            reading = asyncio.create_task(read(response, reader))

            async def began() -> bool:
                return len(reader.of("delta")) > 5

            await until(began)
            stopping = asyncio.create_task(asyncio.to_thread(pair["gateway0"].stop))
            await reading
        assert reader.end is None
        assert reader.retry_milliseconds is not None
        assert reader.comments
        await follow(there, path, reader)
        assert_whole(reader, words(120))
        assert "reset" not in reader.kinds
        await stopping
        pair["gateway0"].start()
        await asyncio.to_thread(pair.wait_until_ready)


async def test_a_twin_follows_the_same_task(pair: Stack) -> None:
    pair.script("openai", default={"tokens": 30, "token_delay_ms": 30})
    async with pair.user() as alice, pair.user(workspace=alice.workspace, gateway=1) as there:
        session = await alice.new_session()
        twins = await asyncio.gather(
            *(ask(user, session, Idempotency_Key="once") for user in (alice, there, alice, there))
        )
        late = await ask(there, session, Idempotency_Key="once")
        for reader in (*twins, late):
            assert_whole(reader, words(30))
            assert reader.end is not None
            assert reader.events[0].data == twins[0].events[0].data
            assert reader.end.data == late.events[-1].data
        await quiet_credits(alice)


async def test_a_regenerated_answer_is_streamed_and_replaces_the_old_one(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        first = await ask(alice, session)
        stack.script("openai", default={"tokens": 10, "token_delay_ms": 10})
        path = f"{alice.messages(session)}regenerate/"
        async with alice.stream("POST", path, headers=EVENTS) as response:
            second = await read(response)
        assert_whole(second, words(10))
        assert second.events[0].data["user_message"] == first.events[0].data["user_message"]
        listed = (await alice.get(alice.messages(session))).json()["results"]
        assert [message["content"] for message in listed] == ["Hello?", words(10)]
        again = await follow(alice, f"{alice.messages(session)}agent-task-status/{first.events[0].data['task_id']}/")
        assert again.text == ""  # nobody is told an answer that was replaced


async def test_what_is_refused_is_a_problem_and_no_stream(stack: Stack) -> None:
    stack.script("openai", default={"first_token_delay_ms": 1_000})
    async with stack.user() as alice, stack.user("bob", workspace=alice.workspace, role="member") as bob:
        session = await alice.new_session()
        async with sending(alice, session) as running:
            path = running.headers["Location"]
            refusals = {
                409: alice.post(alice.messages(session), json={"content": "More"}, headers=EVENTS),
                404: bob.get(path, headers=EVENTS),
                401: alice.get(path, headers={**EVENTS, "Authorization": "Bearer nonsense"}),
                422: alice.post(alice.messages(session), json={"content": " "}, headers=EVENTS),
            }
            for status, request in refusals.items():
                response = await request
                assert (response.status_code, response.json()["status"]) == (status, status)
                assert response.headers["Content-Type"] == "application/problem+json"
            await read(running)


async def test_a_failed_run_ends_in_a_problem(stack: Stack) -> None:
    stack.script("openai", default={"error": "invalid_key"})
    async with stack.user() as alice:
        session = await alice.new_session()
        reader = await ask(alice, session)
        assert reader.kinds == ["message", "failed"]
        problem = reader.events[-1].data
        assert (problem["status"], problem["code"]) == (502, "provider_auth_failed")
        assert problem["task_id"] == reader.events[0].data["task_id"]
        assert (await follow(alice, f"{alice.messages(session)}agent-task-status/{problem['task_id']}/")).kinds == [
            "message",
            "failed",
        ]


async def another_request(stack: Stack, asked: int) -> bool:
    """True once the provider has been asked again."""
    return len(await asyncio.to_thread(stack.requests, "openai")) > asked


async def test_a_client_that_reads_nothing_for_long_delays_nobody_and_loses_nothing(stack: Stack) -> None:
    stack.script("openai", default={"tokens": 20_000, "token_delay_ms": 0.1})
    async with stack.user() as alice, stack.user("bob") as bob:
        session, other = await alice.new_session(), await bob.new_session()
        asked = len(stack.requests("openai"))
        async with sending(alice, session) as response:
            path = response.headers["Location"]
            await until(lambda: another_request(stack, asked), saying="the agent's request")
            stack.script("openai", default={"tokens": 20, "token_delay_ms": 10})
            assert_whole(await ask(bob, other), words(20))
            await ended(alice, path)
            reader = await read(response)
        assert_whole(reader, words(20_000))


async def test_the_documented_client_survives_a_gateway_that_is_replaced(pair: Stack) -> None:
    page = (ROOT / "docs" / "streaming.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    documented: dict[str, Any] = {}
    exec(compile(code, "docs/streaming.md", "exec"), documented)
    pair.script("openai", default={"tokens": 100, "token_delay_ms": 30})
    async with pair.user() as alice:
        session = await alice.new_session()
        began = threading.Event()

        def ask_as_documented() -> tuple[list[str], str]:
            kinds, text = [], ""
            with httpx.Client(base_url=str(alice.base_url), headers=alice.headers) as client:
                for kind, _, text in documented["ask"](client, alice.messages(session), "Hello?"):
                    kinds.append(kind)
                    if text.count("word") > 5:
                        began.set()
            return kinds, text

        asking = asyncio.create_task(asyncio.to_thread(ask_as_documented))
        await asyncio.to_thread(began.wait, 20)
        await asyncio.to_thread(pair["gateway0"].stop)
        pair["gateway0"].start()
        kinds, text = await asking
        await asyncio.to_thread(pair.wait_until_ready)
    assert (kinds[0], kinds[-1], kinds.count("completed")) == ("message", "completed", 1)
    assert text == words(100)
