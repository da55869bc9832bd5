"""Streams: tokens as they come, a text that survives whatever happens to the stream, a stop that stops."""

from typing import Any

from tests.integration.following import Reader, ask, follow, following, read, sending
from tests.integration.stack import Stack, User
from tests.integration.test_paid_answer import quiet_credits


async def stored_answer(user: User, path: str) -> str:
    """What the task's answer is in the end."""
    task: dict[str, Any] = (await user.get(path)).json()
    assert task["status"] in ("completed", "cancelled"), task
    return "".join(message["content"] for message in task["ai_messages"] if message["role"] == "assistant")


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
        assert set(end.data) == {"task_id", "user_message", "ai_messages", "usage", "credits_charged"}
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
