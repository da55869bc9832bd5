"""A turn from its admission to its settlement, and every race on the way."""

import asyncio

import pytest

from services.chat.domain import Ending, SessionSettings, TaskId, TaskState, Usage
from services.chat.errors import (
    ContextTooLong,
    IdempotencyKeyReused,
    LeaseLost,
    SessionNotActive,
    TaskInProgress,
)
from services.chat.store.idempotency import Key
from services.chat.store.runs import Beat
from services.kit.bus import JOBS_SUBJECT, events_subject
from services.kit.callers import Caller, Role, WorkspaceId
from services.kit.errors import DomainError, InvalidArgument, NotFound, PermissionDenied, Unavailable
from services.kit.ids import new_id
from services.kit.paging import PageQuery
from tests.unit.chat.conftest import Chat, key_of


async def test_a_turn_is_stored_queued_answered_and_paid(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id, "What is the capital of France?")
    assert (JOBS_SUBJECT, str(turn.task.id).encode()) in chat.bus.said
    assert await chat.answer("Paris.", Usage(10, 5)) == turn.task.id
    ended = (await chat.turns.get_task(chat.alice, session.id, turn.task.id)).task
    assert (ended.state, ended.attempt, ended.charged_nano, ended.settled) == (TaskState.COMPLETED, 1, 20_000, True)
    (answer,) = ended.ai_messages
    assert (answer.role, answer.content, answer.sequence_number) == ("assistant", "Paris.", 2)
    assert answer.parent_message_id == turn.task.user_message_id
    assert answer.usage == Usage(10, 5)
    assert chat.billing.held == {}
    assert chat.bus.said[-1][0] == events_subject(str(turn.task.id))
    seen = await chat.sessions.get_session(chat.alice, session.id)
    assert (seen.message_count, seen.active_task_id) == (2, None)


async def test_a_second_send_while_one_runs_is_refused_with_the_running_task(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    with pytest.raises(TaskInProgress) as refusal:
        await chat.send(session.id)
    assert refusal.value.metadata["task_id"] == str(turn.task.id)


async def test_of_many_sends_at_once_to_one_session_one_is_accepted(chat: Chat) -> None:
    session = await chat.session()
    results = await asyncio.gather(*(chat.send(session.id) for _ in range(20)), return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert all(isinstance(result, TaskInProgress) for result in results if isinstance(result, BaseException))
    assert len(chat.billing.held) == 1


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_task_id_that_is_taken_is_refused_and_tells_nothing_of_its_task(chat: Chat, key: str | None) -> None:
    first, second = await chat.session(), await chat.session()
    stranger = Caller("mallory", WorkspaceId(new_id()), Role.OWNER)
    strange = await chat.sessions.create_session(stranger, SessionSettings(), None)
    task_id = (await chat.send(first.id)).task.id
    await chat.answer()
    told = set()
    for caller, session in ((chat.alice, first), (chat.alice, second), (stranger, strange)):
        bound = Key(caller.user_id, "send", key, b"same") if key else None
        with pytest.raises(InvalidArgument) as refusal:
            await chat.turns.send_message(caller, session.id, task_id, "Hello?", bound)
        told.add((str(refusal.value), *refusal.value.metadata.items()))
    assert told == {("task_id must be a new UUID: there is a task of this id.", ("field", "task_id"))}
    with pytest.raises(InvalidArgument):
        await chat.turns.regenerate_answer(chat.alice, first.id, task_id, None)
    assert chat.billing.held == {}
    assert await chat.sql("select count(*) from chat.idempotency_keys") == [(0,)]
    assert (await chat.turns.get_task(chat.alice, first.id, task_id)).task.state is TaskState.COMPLETED


async def test_a_task_id_that_is_sent_again_while_it_runs_is_the_task_in_progress(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    with pytest.raises(TaskInProgress) as refusal:
        await chat.turns.send_message(chat.alice, session.id, turn.task.id, "Hello?", None)
    assert refusal.value.metadata["task_id"] == str(turn.task.id)


async def test_of_one_task_id_in_many_sessions_at_once_one_is_accepted(chat: Chat) -> None:
    sessions, task_id = [await chat.session() for _ in range(8)], TaskId(new_id())
    sends = (chat.turns.send_message(chat.alice, session.id, task_id, "Hello?", None) for session in sessions)
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert sum(isinstance(result, InvalidArgument) for result in results) == 7


async def test_twins_of_one_idempotency_key_are_one_turn_also_on_credit_for_one(chat: Chat) -> None:
    session = await chat.session()
    chat.billing.credit = 1
    turns = await asyncio.gather(*(chat.send(session.id, key=key_of("k", session.id)) for _ in range(50)))
    assert len({turn.task.id for turn in turns}) == 1
    assert await chat.sql("select count(*) from chat.messages") == [(1,)]
    assert len(chat.billing.held) == 1


async def test_a_key_with_another_body_is_refused(chat: Chat) -> None:
    session = await chat.session()
    await chat.send(session.id, key=key_of("k", session.id))
    with pytest.raises(IdempotencyKeyReused):
        await chat.send(session.id, key=key_of("k", session.id, b"other"))


async def test_a_refused_turn_leaves_nothing_and_its_key_can_be_used_again(chat: Chat) -> None:
    session = await chat.session()
    chat.billing.credit = 0
    with pytest.raises(DomainError) as refusal:
        await chat.send(session.id, key=key_of("k", session.id))
    assert refusal.value.reason == "INSUFFICIENT_CREDITS"
    assert await chat.sql("select count(*) from chat.tasks") == [(0,)]
    assert await chat.sql("select count(*) from chat.messages") == [(0,)]
    chat.billing.credit = 1
    assert (await chat.send(session.id, key=key_of("k", session.id))).task.state is TaskState.QUEUED


async def test_while_billing_is_away_a_send_is_unavailable_and_stores_nothing(chat: Chat) -> None:
    session = await chat.session()
    chat.billing.down = True
    with pytest.raises(Unavailable):
        await chat.send(session.id)
    assert await chat.sql("select state from chat.tasks") == [("abandoned",)]
    assert await chat.sql("select count(*) from chat.messages") == [(0,)]
    chat.billing.down = False
    await chat.reaper.go_round()
    assert await chat.sql("select count(*) from chat.tasks") == [(0,)]
    assert len(chat.billing.released) == 1
    await chat.send(session.id)


async def test_a_hold_that_billing_could_not_confirm_is_released(chat: Chat) -> None:
    session = await chat.session()
    chat.billing.loses_its_database = True
    with pytest.raises(Unavailable):
        await chat.send(session.id)
    assert len(chat.billing.held) == 1
    await chat.reaper.go_round()
    assert chat.billing.held == {}
    assert await chat.sql("select count(*) from chat.tasks") == [(0,)]


async def test_a_message_that_can_not_fit_the_context_holds_nothing(chat: Chat) -> None:
    session = await chat.session()
    with pytest.raises(ContextTooLong):
        await chat.send(session.id, "word " * 4_000)
    assert chat.billing.held == {}
    assert await chat.sql("select count(*) from chat.tasks") == [(0,)]


async def test_strangers_readers_viewers_and_archived_sessions_can_not_send(chat: Chat) -> None:
    session = await chat.session()
    with pytest.raises(NotFound):
        await chat.turns.send_message(chat.bob, session.id, TaskId(new_id()), "x", None)
    await chat.sql("insert into chat.shares values (:id, 'bob', 'read')", id=session.id)
    with pytest.raises(PermissionDenied):
        await chat.turns.send_message(chat.bob, session.id, TaskId(new_id()), "x", None)
    await chat.sql("update chat.shares set permission = 'write'")
    viewer = Caller("bob", chat.bob.workspace_id, Role.VIEWER)
    with pytest.raises(PermissionDenied):
        await chat.turns.send_message(viewer, session.id, TaskId(new_id()), "x", None)
    guest = Caller("bob", chat.bob.workspace_id, Role.GUEST)
    await chat.turns.send_message(guest, session.id, TaskId(new_id()), "x", None)
    await chat.answer()
    await chat.sql("update chat.sessions set status = 'archived'")
    with pytest.raises(SessionNotActive):
        await chat.send(session.id)


async def test_a_zombie_attempt_changes_nothing(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    (zombie,) = await chat.runs.claim_tasks("zombie", 1)
    await chat.sql("update chat.tasks set lease_until = now() - interval '1 second'")
    assert [task.id for task in await chat.upkeep.requeue_expired(10)] == [turn.task.id]
    (heir,) = await chat.runs.claim_tasks("heir", 1)
    assert heir.claim.attempt == 2
    with pytest.raises(LeaseLost):
        await chat.complete(zombie.claim.task_id, zombie.claim.attempt, "stale")
    await chat.complete(heir.claim.task_id, heir.claim.attempt, "fresh")
    ended = (await chat.turns.get_task(chat.alice, session.id, turn.task.id)).task
    assert [message.content for message in ended.ai_messages] == ["fresh"]
    with pytest.raises(LeaseLost):
        await chat.complete(heir.claim.task_id, heir.claim.attempt, "again")
    assert len(chat.billing.settled) == 1


async def test_three_expired_leases_are_poison(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    await chat.reaper.go_round()  # contact begins
    chat.clock.now += 16
    for _ in range(3):
        await chat.runs.claim_tasks("dies", 1)
        await chat.sql("update chat.tasks set lease_until = now() - interval '1 second'")
        await chat.reaper.go_round()
    await chat.settle()
    ended = (await chat.turns.get_task(chat.alice, session.id, turn.task.id)).task
    assert (ended.state, ended.error_code, ended.charged_nano) == (TaskState.FAILED, "poison", 0)
    assert str(turn.task.id) in chat.billing.released


async def test_leases_are_not_judged_before_a_lease_of_contact(chat: Chat) -> None:
    session = await chat.session()
    await chat.send(session.id)
    await chat.runs.claim_tasks("cut off", 1)
    await chat.sql("update chat.tasks set lease_until = now() - interval '1 second'")
    await chat.reaper.go_round()
    assert await chat.sql("select state from chat.tasks") == [("running",)]
    chat.clock.now += 16
    await chat.reaper.go_round()
    assert await chat.sql("select state from chat.tasks") == [("queued",)]


async def test_past_its_deadline_a_task_fails_queued_or_running(chat: Chat) -> None:
    first, second = await chat.session(), await chat.session()
    running = await chat.send(first.id)
    await chat.runs.claim_tasks("slow", 1)
    queued = await chat.send(second.id)
    await chat.sql("update chat.tasks set deadline_at = now() - interval '1 second'")
    await chat.reaper.go_round()
    chat.clock.now += 16
    await chat.reaper.go_round()
    await chat.sql("update chat.tasks set ended_at = now() - interval '1 minute'")
    await chat.reaper.go_round()
    for session, turn in ((first, running), (second, queued)):
        task = (await chat.turns.get_task(chat.alice, session.id, turn.task.id)).task
        assert (task.state, task.error_code, task.settled) == (TaskState.FAILED, "deadline_exceeded", True)
    assert chat.billing.held == {}


async def test_a_failed_turn_costs_nothing_and_is_not_told_to_later_turns(chat: Chat) -> None:
    session = await chat.session()
    await chat.send(session.id, "lost")
    (work,) = await chat.runs.claim_tasks("worker", 1)
    ending = Ending(TaskState.FAILED, error_code="provider_timeout", error_detail="Too slow.")
    await chat.runs.end_task(work.claim.task_id, work.claim.attempt, ending, last_event=0)
    await chat.settle()
    assert chat.billing.held == {}
    assert chat.billing.settled == {}
    await chat.send(session.id, "found")
    (work,) = await chat.runs.claim_tasks("worker", 1)
    assert [message.content for message in work.history] == ["found"]
    page = await chat.sessions.list_messages(chat.alice, session.id, _first(10), descending=False)
    assert [message.content for message in page.entries] == ["lost", "found"]


async def test_a_run_that_is_out_of_credits_fails_and_pays_what_it_used(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    (work,) = await chat.runs.claim_tasks("worker", 1)
    ending = Ending(TaskState.FAILED, usage=Usage(10, 5), error_code="out_of_credits", error_detail="Used up.")
    await chat.runs.end_task(turn.task.id, work.claim.attempt, ending, last_event=0)
    await chat.settle()
    ended = (await chat.turns.get_task(chat.alice, session.id, turn.task.id)).task
    assert (ended.state, ended.usage, ended.charged_nano) == (TaskState.FAILED, Usage(10, 5), 20_000)


async def test_history_comes_oldest_first_and_ends_with_the_message_to_answer(chat: Chat) -> None:
    session = await chat.session(system_prompt="Be brief.")
    for number in range(3):
        await chat.send(session.id, f"question {number}")
        await chat.answer(f"answer {number}")
    await chat.send(session.id, "last")
    (work,) = await chat.runs.claim_tasks("worker", 1)
    told = [message.content for message in work.history]
    assert told == ["question 0", "answer 0", "question 1", "answer 1", "question 2", "answer 2", "last"]


async def test_history_is_cut_to_the_context_window_oldest_turns_first(chat: Chat) -> None:
    session = await chat.session()
    for number in range(6):
        await chat.send(session.id, f"{number} " + "word " * 500)
        await chat.answer(f"answer {number}")
    await chat.send(session.id, "last")
    (work,) = await chat.runs.claim_tasks("worker", 1)
    told = [message.content[:8] for message in work.history]
    assert told[-1] == "last"
    assert told[0].startswith("2")
    assert "answer 5" in told
    assert work.history[0].role == "user"


async def test_a_queued_task_is_cancelled_at_once_and_free(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    cancelled = await chat.turns.cancel_task(chat.alice, session.id, turn.task.id)
    assert (cancelled.state, cancelled.charged_nano, cancelled.settled) == (TaskState.CANCELLED, 0, True)
    assert chat.billing.held == {}
    assert await chat.runs.claim_tasks("worker", 1) == ()
    assert await chat.turns.cancel_task(chat.alice, session.id, turn.task.id) == cancelled


async def test_a_running_task_that_does_not_stop_is_ended_with_its_last_heartbeat(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    (work,) = await chat.runs.claim_tasks("deaf", 1)
    beat = Beat(turn.task.id, work.claim.attempt, "Once upon", Usage(10, 2))
    assert await chat.runs.heartbeat_tasks([beat]) == ([], [])
    cancelled = await chat.turns.cancel_task(chat.alice, session.id, turn.task.id)
    assert (cancelled.state, cancelled.charged_nano) == (TaskState.CANCELLED, 14_000)
    (partial,) = cancelled.ai_messages
    assert (partial.content, partial.finish_reason) == ("Once upon", "cancelled")
    assert await chat.runs.heartbeat_tasks([beat]) == ([turn.task.id], [])
    with pytest.raises(LeaseLost):
        await chat.complete(turn.task.id, work.claim.attempt)


async def test_a_reader_can_not_cancel(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    await chat.sql("insert into chat.shares values (:id, 'bob', 'read')", id=session.id)
    with pytest.raises(PermissionDenied):
        await chat.turns.cancel_task(chat.bob, session.id, turn.task.id)


async def test_deleting_a_session_cancels_its_task_which_pays_and_stores_nothing(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    (work,) = await chat.runs.claim_tasks("worker", 1)
    await chat.sessions.delete_session(chat.alice, session.id, if_version=None)
    with pytest.raises(NotFound):
        await chat.turns.get_task(chat.alice, session.id, turn.task.id)
    ending = Ending(TaskState.CANCELLED, content="Once", finish_reason="cancelled", usage=Usage(10, 1))
    await chat.runs.end_task(turn.task.id, work.claim.attempt, ending, last_event=0)
    assert await chat.sql("select count(*) from chat.messages where role = 'assistant'") == [(0,)]
    await chat.settle()
    assert chat.billing.settled == {str(turn.task.id): 12_000}
    await chat.reaper.go_round()
    assert await chat.sql("select count(*) from chat.sessions") == [(0,)]


async def test_what_ended_while_billing_was_away_is_settled_later_once(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    chat.billing.down = True
    await chat.answer()
    assert chat.bus.said[-1][0] == events_subject(str(turn.task.id))
    chat.billing.down = False
    await chat.sql("update chat.tasks set ended_at = now() - interval '1 minute'")
    await chat.reaper.go_round()
    await chat.reaper.go_round()
    ended = (await chat.turns.get_task(chat.alice, session.id, turn.task.id)).task
    assert (ended.settled, ended.charged_nano) == (True, 20_000)


async def test_an_unclaimed_task_is_announced_again(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    chat.bus.said.clear()
    await chat.reaper.go_round()
    assert chat.bus.said == []
    await chat.sql("update chat.tasks set published_at = now() - interval '3 seconds'")
    await chat.reaper.go_round()
    await chat.reaper.go_round()
    assert chat.bus.said == [(JOBS_SUBJECT, str(turn.task.id).encode())]


async def test_no_more_is_announced_again_than_lacks_a_wake_up(chat: Chat) -> None:
    for _ in range(3):
        await chat.send((await chat.session()).id)
    chat.bus.said.clear()
    chat.bus.waiting = 2
    await chat.sql("update chat.tasks set published_at = now() - interval '3 seconds'")
    await chat.reaper.go_round()
    assert [subject for subject, _ in chat.bus.said] == [JOBS_SUBJECT]


async def test_workers_that_claim_at_once_share_the_queue(chat: Chat) -> None:
    for _ in range(10):
        await chat.send((await chat.session()).id)
    claimed = await asyncio.gather(*(chat.runs.claim_tasks(f"worker {n}", 3) for n in range(6)))
    ids = [work.claim.task_id for batch in claimed for work in batch]
    assert len(ids) == len(set(ids)) == 10


async def test_a_nul_in_an_answer_is_left_out(chat: Chat) -> None:
    session = await chat.session()
    await chat.send(session.id)
    task_id = await chat.answer("a\x00b")
    ended = (await chat.turns.get_task(chat.alice, session.id, task_id)).task
    assert ended.ai_messages[0].content == "ab"


def _first(limit: int) -> PageQuery:
    return PageQuery.parse(limit=limit, token="")
