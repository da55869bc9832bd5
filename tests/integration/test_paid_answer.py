"""The main job: a message is stored, answered by an agent and paid for, sync or async."""

import asyncio
from decimal import Decimal

import pytest

from tests.integration.stack import Stack, User
from tests.integration.waiting import until

RESEARCH = {
    "name": "Research",
    "ai_provider": "google",
    "ai_model": "gemini-2.5-pro",
    "system_prompt": "You are a helpful research assistant.",
    "temperature": 0.7,
    "agent_framework": "langgraph",
}


async def quiet_credits(user: User) -> dict[str, str]:
    """The balance once nothing is held any more."""

    async def settled() -> dict[str, str] | None:
        found = await user.credits()
        return found if Decimal(found["held"]) == 0 else None

    found = await until(settled, saying="held = 0")
    assert found is not None
    return found


async def prices(user: User, model: str) -> tuple[Decimal, Decimal]:
    """Credits per input and output token as GET /api/models/ shows them."""
    listed = (await user.get("/api/models/")).json()
    (row,) = [row for row in listed["results"] if row["model"] == model]
    (tier,) = row["price_tiers"]
    million = Decimal(1_000_000)
    return Decimal(tier["input_price_per_million"]) / million, Decimal(tier["output_price_per_million"]) / million


async def test_a_sync_send_answers_with_the_stored_messages_and_the_exact_charge(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        before = Decimal((await alice.credits())["balance"])
        response = await alice.say(session, "What is the capital of France?")
        assert response.status_code == 201, response.text
        body = response.json()
        assert set(body) == {"task_id", "user_message", "ai_messages", "usage", "credits_charged", "warnings"}
        assert body["user_message"]["content"] == "What is the capital of France?"
        (answer,) = body["ai_messages"]
        assert (answer["role"], answer["sequence_number"], answer["finish_reason"]) == ("assistant", 2, "stop")
        assert "Paris" in answer["content"]
        assert answer["parent_message_id"] == body["user_message"]["id"]
        per_input, per_output = await prices(alice, "gpt-4o-mini")
        cost = body["usage"]["input_tokens"] * per_input + body["usage"]["output_tokens"] * per_output
        assert Decimal(body["credits_charged"]) == cost
        after = await alice.credits()
        assert (Decimal(after["balance"]), Decimal(after["held"])) == (before - cost, Decimal(0))
        listed = (await alice.get(alice.messages(session))).json()
        assert [message["id"] for message in listed["results"]] == [body["user_message"]["id"], answer["id"]]
        task = (await alice.task(session, body["task_id"])).json()
        assert (task["status"], task["credits"]["charged"]) == ("completed", body["credits_charged"])
        ledger = (await alice.get(f"/api/workspaces/{alice.workspace}/credits/usage/")).json()["results"]
        assert sum(Decimal(entry["amount"]) for entry in ledger) == Decimal(after["balance"])
        assert [entry["kind"] for entry in ledger] == ["chat", "signup"]
        assert ledger[0]["task_id"] == body["task_id"]


async def test_an_async_send_is_accepted_and_polled_to_its_answer(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        response = await alice.say(session, Prefer="respond-async")
        assert response.status_code == 202
        body = response.json()
        assert body == {"task_id": body["task_id"], "status": "processing"}
        assert response.headers["Location"] == f"{alice.messages(session)}agent-task-status/{body['task_id']}/"

        async def completed() -> dict[str, object] | None:
            found = (await alice.get(response.headers["Location"])).json()
            return found if found["status"] == "completed" else None

        task = await until(completed)
        assert task is not None
        assert [message["role"] for message in task["ai_messages"]] == ["assistant"]  # type: ignore[attr-defined]
        await quiet_credits(alice)


async def test_the_documented_session_reaches_gemini_with_all_it_configures(stack: Stack) -> None:
    async with stack.user() as alice:
        created = await alice.post(alice.chats, json=RESEARCH)
        assert created.status_code == 201, created.text
        assert {name: created.json()[name] for name in RESEARCH} == RESEARCH
        response = await alice.say(created.json()["id"], "Who painted it?")
        assert response.status_code == 201, response.text
        sent = stack.requests("gemini")[-1]
        assert "gemini-2.5-pro" in str(sent["path"])
        body = sent["body"]
        assert isinstance(body, dict)
        assert body["systemInstruction"]["parts"][0]["text"] == "You are a helpful research assistant."
        assert body["generationConfig"]["temperature"] == 0.7
        assert body["contents"][-1] == {"role": "user", "parts": [{"text": "Who painted it?"}]}


async def test_without_credits_no_session_and_without_a_key_no_provider(stack: Stack) -> None:
    async with stack.user() as alice:
        refused = await alice.post(alice.chats, json={"ai_provider": "anthropic"})
        assert (refused.status_code, refused.json()["code"]) == (422, "provider_not_configured")


async def test_a_failed_provider_is_a_502_that_costs_nothing(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        before = await alice.credits()
        stack.script("openai", default={"error": "invalid_key"})
        response = await alice.say(session)
        assert response.status_code == 502, response.text
        problem = response.json()
        assert problem["code"] == "provider_auth_failed"
        assert response.headers["content-type"] == "application/problem+json"
        task = (await alice.task(session, problem["task_id"])).json()
        assert (task["status"], task["error"]["code"]) == ("failed", "provider_auth_failed")
        assert await quiet_credits(alice) == before


async def test_past_its_patience_a_sync_send_is_202_and_the_run_goes_on(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        stack.script("openai", default={"first_token_delay_ms": 2_500})
        response = await alice.say(session, Prefer="wait=1")
        assert response.status_code == 202

        async def ended() -> bool:
            found = (await alice.task(session, response.json()["task_id"])).json()
            return bool(found["status"] == "completed")

        await until(ended)


async def test_a_queued_or_running_task_can_be_cancelled_and_pays_what_was_written(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        stack.script("openai", default={"tokens": 500, "token_delay_ms": 20})
        accepted = (await alice.say(session, Prefer="respond-async")).json()
        path = f"{alice.messages(session)}agent-task-status/{accepted['task_id']}/"
        response = await alice.delete(path)
        assert response.status_code == 200, response.text
        task = response.json()
        assert task["status"] == "cancelled"
        assert (await alice.delete(path)).json()["status"] == "cancelled"
        balance = await quiet_credits(alice)
        assert Decimal(balance["balance"]) == 10 - Decimal(task["credits"]["charged"])


async def test_two_hundred_twins_are_one_turn(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        responses = await asyncio.gather(*(alice.say(session, Idempotency_Key="once") for _ in range(200)))
        assert {response.status_code for response in responses} <= {201, 202}, {r.text for r in responses}
        assert len({response.json()["task_id"] for response in responses}) == 1
        await quiet_credits(alice)
        ledger = (await alice.get(f"/api/workspaces/{alice.workspace}/credits/usage/")).json()["results"]
        assert [entry["kind"] for entry in ledger] == ["chat", "signup"]
        again = await alice.say(session, "Something else", Idempotency_Key="once")
        assert again.status_code == 422


async def test_a_second_send_while_one_runs_is_409_with_its_task(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session()
        stack.script("openai", default={"first_token_delay_ms": 1_000})
        first = (await alice.say(session, Prefer="respond-async")).json()
        second = await alice.say(session)
        assert (second.status_code, second.json()["code"]) == (409, "task_in_progress")
        assert second.json()["task_id"] == first["task_id"]
        await quiet_credits(alice)


@pytest.mark.parametrize("framework", ["langgraph", "none"])
async def test_each_framework_answers_with_the_conversation_so_far(stack: Stack, framework: str) -> None:
    async with stack.user() as alice:
        session = await alice.new_session(agent_framework=framework, system_prompt="Be brief.", max_tokens=50)
        for content in ("one", "two"):
            assert (await alice.say(session, content)).status_code == 201
        body = stack.requests("openai")[-1]["body"]
        assert isinstance(body, dict)
        assert [(message["role"], message["content"]) for message in body["messages"]] == [
            ("system", "Be brief."),
            ("user", "one"),
            ("assistant", "The capital of France is Paris."),
            ("user", "two"),
        ]
        assert body["max_completion_tokens"] == 50
