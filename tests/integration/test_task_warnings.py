"""What a run had to do without is shown wherever its task is."""

from tests.integration.following import read, sending
from tests.integration.stack import Stack

NO_TEMPERATURE = {"code": "parameter_dropped", "detail": "temperature"}


async def test_a_parameter_that_the_provider_refuses_is_left_out_and_named(stack: Stack) -> None:
    stack.script("openai", next=[{"error": "bad_parameter"}])
    async with stack.user() as alice:
        session = await alice.new_session(temperature=0.7)
        answer = await alice.say(session, Idempotency_Key="dropped")
        assert answer.status_code == 201, answer.text
        assert answer.json()["warnings"] == [NO_TEMPERATURE]
        assert "temperature" not in stack.requests("openai")[-1]["body"]  # type: ignore[operator]
        assert (await alice.say(session, Idempotency_Key="dropped")).json() == answer.json()
        task = await alice.task(session, answer.json()["task_id"])
        assert (task.json()["status"], task.json()["warnings"]) == ("completed", [NO_TEMPERATURE])


async def test_a_parameter_that_a_model_does_not_take_is_named_in_the_last_event(stack: Stack) -> None:
    async with stack.user() as alice:
        session = await alice.new_session(ai_model="gpt-5-mini", temperature=0.7)
        async with sending(alice, session) as response:
            reader = await read(response)
        assert reader.end is not None
        assert (reader.end.kind, reader.end.data["warnings"]) == ("completed", [NO_TEMPERATURE])


async def test_a_failed_task_names_what_was_left_out(stack: Stack) -> None:
    stack.script("openai", next=[{"text": "I", "finish_reason": "content_filter"}])
    async with stack.user() as alice:
        session = await alice.new_session(ai_model="gpt-5-mini", temperature=0.7)
        answer = await alice.say(session)
        assert (answer.status_code, answer.json()["code"]) == (502, "content_filtered")
        task = await alice.task(session, answer.json()["task_id"])
        assert (task.json()["status"], task.json()["warnings"]) == ("failed", [NO_TEMPERATURE])


async def test_a_turn_without_anything_left_out_has_no_warnings(stack: Stack) -> None:
    async with stack.user() as alice:
        answer = await alice.say(await alice.new_session(temperature=0.7))
        assert answer.json()["warnings"] == []
