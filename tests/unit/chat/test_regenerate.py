"""The last user message answered again."""

import pytest

from services.chat.domain import Ending, Permission, TaskId, TaskState
from services.chat.errors import NothingToRegenerate, TaskInProgress
from services.kit.callers import Caller, Role
from services.kit.errors import PermissionDenied
from services.kit.ids import new_id
from services.kit.paging import PageQuery
from tests.unit.chat.conftest import WORKSPACE, Chat


async def contents(chat: Chat, session_id: object) -> list[str]:
    """What the session holds."""
    query = PageQuery.parse(limit=50, token="")
    found = await chat.sessions.list_messages(chat.alice, session_id, query, descending=False)  # type: ignore[arg-type]
    return [message.content for message in found.entries]


async def test_the_new_answer_replaces_the_old_one_when_it_is_stored(chat: Chat) -> None:
    session = await chat.session()
    sent = await chat.send(session.id, "Hello?")
    await chat.answer("old")
    turn = await chat.turns.regenerate_answer(chat.alice, session.id, TaskId(new_id()), None)
    assert turn.user_message == sent.user_message
    assert await contents(chat, session.id) == ["Hello?", "old"]
    (work,) = await chat.runs.claim_tasks("worker", 1)
    assert [message.content for message in work.history] == ["Hello?"]
    await chat.complete(work.claim.task_id, work.claim.attempt, "new")
    assert await contents(chat, session.id) == ["Hello?", "new"]
    assert (await chat.sessions.get_session(chat.alice, session.id)).message_count == 2
    ended = (await chat.turns.get_task(chat.alice, session.id, turn.task.id)).task
    assert [(message.content, message.sequence_number) for message in ended.ai_messages] == [("new", 3)]


async def test_a_failed_regeneration_leaves_the_old_answer(chat: Chat) -> None:
    session = await chat.session()
    await chat.send(session.id, "Hello?")
    await chat.answer("old")
    await chat.turns.regenerate_answer(chat.alice, session.id, TaskId(new_id()), None)
    (work,) = await chat.runs.claim_tasks("worker", 1)
    ending = Ending(TaskState.FAILED, error_code="provider_timeout", error_detail="Too slow.")
    await chat.runs.end_task(work.claim.task_id, work.claim.attempt, ending, last_event=0)
    assert await contents(chat, session.id) == ["Hello?", "old"]
    await chat.send(session.id, "And now?")
    (work,) = await chat.runs.claim_tasks("worker", 1)
    assert [message.content for message in work.history] == ["Hello?", "old", "And now?"]


async def test_a_failed_turn_that_is_answered_again_is_told_to_later_turns(chat: Chat) -> None:
    session = await chat.session()
    await chat.send(session.id, "Hello?")
    (work,) = await chat.runs.claim_tasks("worker", 1)
    ending = Ending(TaskState.FAILED, error_code="provider_timeout", error_detail="Too slow.")
    await chat.runs.end_task(work.claim.task_id, work.claim.attempt, ending, last_event=0)
    await chat.turns.regenerate_answer(chat.alice, session.id, TaskId(new_id()), None)
    await chat.answer("Hi.")
    await chat.send(session.id, "And now?")
    (work,) = await chat.runs.claim_tasks("worker", 1)
    assert [message.content for message in work.history] == ["Hello?", "Hi.", "And now?"]


async def test_nothing_can_be_regenerated_in_an_empty_session_or_while_a_task_runs(chat: Chat) -> None:
    session = await chat.session()
    with pytest.raises(NothingToRegenerate):
        await chat.turns.regenerate_answer(chat.alice, session.id, TaskId(new_id()), None)
    await chat.send(session.id)
    with pytest.raises(TaskInProgress):
        await chat.turns.regenerate_answer(chat.alice, session.id, TaskId(new_id()), None)


async def test_a_reader_can_not_regenerate_and_a_writing_guest_can(chat: Chat) -> None:
    session = await chat.session()
    await chat.send(session.id)
    await chat.answer()
    guest = Caller("eve", WORKSPACE, Role.GUEST)
    await chat.shares.share_session(chat.alice, session.id, "eve", Permission.READ)
    with pytest.raises(PermissionDenied):
        await chat.turns.regenerate_answer(guest, session.id, TaskId(new_id()), None)
    await chat.shares.share_session(chat.alice, session.id, "eve", Permission.WRITE)
    turn = await chat.turns.regenerate_answer(guest, session.id, TaskId(new_id()), None)
    assert turn.task.state is TaskState.QUEUED
