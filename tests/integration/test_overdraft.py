"""Credits under parallel requests: what is there can be spent, to the last hold, and not a bit more."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.integration.stack import Stack, User
from tests.integration.test_paid_answer import quiet_credits
from tests.integration.waiting import until
from tests.servers import Postgres

PARALLEL = 200
AFFORDED = 10
# With a limit of its own a turn holds its full worst case, so that the credits divide evenly.
SETTINGS = {"ai_provider": "openai", "ai_model": "gpt-4o-mini", "max_tokens": 1_000}
# Nothing may end, and give its hold back, before the last send has been judged.
UNHURRIED = {"first_token_delay_ms": 60_000}


@pytest.fixture(scope="module")
def unfunded(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Workspaces get nothing at the start."""
    url = postgres.create_database("unfunded", template=migrated_template)
    with Stack(tmp_path_factory.mktemp("unfunded"), url, env={"BILLING_SIGNUP_CREDITS": "0"}) as running:
        yield running


async def grant(user: User, amount: Decimal) -> None:
    """Add credits."""
    path = f"/api/workspaces/{user.workspace}/credits/grants/"
    granted = await user.post(path, json={"amount": f"{amount:f}", "reason": "exactly"})
    assert granted.status_code == 201, granted.text


async def cancel(user: User, session: str, task_id: str) -> None:
    """Stop a run."""
    stopped = await user.delete(f"{user.messages(session)}agent-task-status/{task_id}/")
    assert stopped.status_code == 200, stopped.text


@pytest.fixture
async def one_hold(unfunded: Stack) -> Decimal:
    """What one turn of these tests sets aside."""
    async with unfunded.user() as alice:
        await grant(alice, Decimal(1))
        session = await alice.new_session(**SETTINGS)
        unfunded.script("openai", default=UNHURRIED)
        accepted = (await alice.say(session, Prefer="respond-async")).json()
        held = Decimal((await alice.credits())["held"])
        await cancel(alice, session, accepted["task_id"])
        unfunded.script("openai", default={})
        return held


async def ledger(user: User) -> list[str]:
    """The kinds of the workspace's entries, newest first."""
    listed = await user.get(f"/api/workspaces/{user.workspace}/credits/usage/?limit=200")
    return [entry["kind"] for entry in listed.json()["results"]]


async def test_without_credits_nothing_can_be_opened(unfunded: Stack) -> None:
    async with unfunded.user() as alice:
        refused = await alice.post(alice.chats, json={})
        assert (refused.status_code, refused.json()["code"]) == (402, "insufficient_credits")
        assert await alice.credits() == {"balance": "0", "held": "0", "available": "0"}


async def test_two_hundred_twins_on_credit_for_one_are_one_turn(unfunded: Stack, one_hold: Decimal) -> None:
    async with unfunded.user() as alice:
        await grant(alice, one_hold)
        session = await alice.new_session(**SETTINGS)
        responses = await asyncio.gather(*(alice.say(session, Idempotency_Key="once") for _ in range(PARALLEL)))
        assert {response.status_code for response in responses} <= {201, 202}, Counter(r.text for r in responses)
        (task_id,) = {response.json()["task_id"] for response in responses}
        balance = await quiet_credits(alice)
        task = (await alice.task(session, task_id)).json()
        assert task["status"] == "completed"
        assert Decimal(balance["balance"]) == one_hold - Decimal(task["credits"]["charged"])
        listed = (await alice.get(alice.messages(session))).json()["results"]
        assert [message["role"] for message in listed] == ["user", "assistant"]
        assert await ledger(alice) == ["chat", "grant"]


async def test_of_two_hundred_sends_on_credit_for_ten_exactly_ten_are_accepted(
    unfunded: Stack, one_hold: Decimal
) -> None:
    async with unfunded.user() as alice:
        await grant(alice, AFFORDED * one_hold)
        sessions = await asyncio.gather(*(alice.new_session(**SETTINGS) for _ in range(PARALLEL)))
        unfunded.script("openai", default=UNHURRIED)
        responses = await asyncio.gather(*(alice.say(session, Prefer="respond-async") for session in sessions))
        unfunded.script("openai", default={})
        assert Counter(response.status_code for response in responses) == {202: AFFORDED, 402: PARALLEL - AFFORDED}
        refused = [response.json() for response in responses if response.status_code == 402]
        assert {problem["code"] for problem in refused} == {"insufficient_credits"}
        assert Decimal((await alice.credits())["available"]) == 0
        accepted = {
            session: response.json()["task_id"]
            for session, response in zip(sessions, responses, strict=True)
            if response.status_code == 202
        }
        for session in set(sessions) - set(accepted):
            listed = (await alice.get(alice.messages(session))).json()["results"]
            assert listed == [], "a refused message was stored"
        await asyncio.gather(*(cancel(alice, session, task_id) for session, task_id in accepted.items()))

        async def all_is_given_back() -> bool:
            found = await alice.credits()
            return Decimal(found["held"]) == 0 and Decimal(found["available"]) >= 0

        await until(all_is_given_back)
