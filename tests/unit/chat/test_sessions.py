"""Sessions and their messages: who sees what, in which order, and what changes them."""

import asyncio

import pytest

from services.chat.domain import Permission, SessionSettings, SessionStatus
from services.chat.errors import (
    FrameworkNotAvailable,
    IdempotencyKeyReused,
    ModelUnknown,
    ProviderNotConfigured,
    TaskInProgress,
    VersionMismatch,
)
from services.chat.store.idempotency import Key
from services.kit.callers import Caller, Role, WorkspaceId
from services.kit.errors import DomainError, InvalidArgument, InvalidCursor, NotFound, PermissionDenied
from services.kit.paging import PageQuery
from tests.unit.chat.conftest import WORKSPACE, Chat

ADMIN = Caller("root", WORKSPACE, Role.ADMIN)


def page(limit: int, token: str = "") -> PageQuery:
    """A page's query."""
    return PageQuery.parse(limit=limit, token=token)


async def test_a_session_that_says_nothing_gets_the_defaults(chat: Chat) -> None:
    session = await chat.session()
    settings = session.settings
    assert (settings.ai_provider, settings.ai_model, settings.agent_framework) == ("local", "small", "langgraph")
    assert (session.permission, session.is_shared, session.shareable_link_id) == (Permission.OWNER, False, None)


async def test_a_model_alone_names_its_provider(chat: Chat) -> None:
    assert (await chat.session(ai_model="gpt")).settings.ai_provider == "openai"


async def test_what_can_not_be_run_is_refused_when_the_session_is_opened(chat: Chat) -> None:
    with pytest.raises(ProviderNotConfigured):
        await chat.session(ai_provider="google", ai_model="gemini-2.5-pro")
    with pytest.raises(ModelUnknown):
        await chat.session(ai_provider="openai", ai_model="gpt-9")
    with pytest.raises(FrameworkNotAvailable):
        await chat.session(agent_framework="pydantic_ai")
    with pytest.raises(InvalidArgument):
        await chat.session(temperature=2.1)


async def test_without_credits_no_session_is_opened_and_nothing_is_held(chat: Chat) -> None:
    chat.billing.credit = 0
    with pytest.raises(DomainError) as refusal:
        await chat.session()
    assert refusal.value.reason == "INSUFFICIENT_CREDITS"
    assert await chat.sql("select count(*) from chat.sessions") == [(0,)]


async def test_viewers_and_guests_open_no_session(chat: Chat) -> None:
    for role, outcome in ((Role.VIEWER, PermissionDenied), (Role.GUEST, NotFound)):
        with pytest.raises(outcome):
            await chat.sessions.create_session(Caller("x", WORKSPACE, role), SessionSettings(), None)


async def test_one_key_opens_one_session(chat: Chat) -> None:
    key = Key("alice", "create", "k", b"same")
    first = await chat.sessions.create_session(chat.alice, SessionSettings(name="a"), key)
    assert (await chat.sessions.create_session(chat.alice, SessionSettings(name="a"), key)).id == first.id
    assert await chat.sql("select count(*) from chat.sessions") == [(1,)]


async def test_nobody_but_the_owner_and_those_shared_with_sees_a_session(chat: Chat) -> None:
    session = await chat.session()
    outsiders = (chat.bob, ADMIN, Caller("alice", WORKSPACE, Role.GUEST), Caller("eve", WORKSPACE, Role.GUEST))
    for outsider in outsiders:
        with pytest.raises(NotFound):
            await chat.sessions.get_session(outsider, session.id)
        with pytest.raises(NotFound):
            await chat.sessions.list_messages(outsider, session.id, page(10), descending=False)
    elsewhere = Caller("alice", WorkspaceId(session.id), Role.OWNER)
    with pytest.raises(NotFound):
        await chat.sessions.get_session(elsewhere, session.id)


async def test_a_share_lets_even_a_guest_read_and_shows_in_its_list(chat: Chat) -> None:
    session = await chat.session(name="ours")
    guest = Caller("eve", WORKSPACE, Role.GUEST)
    with pytest.raises(NotFound):
        await chat.sessions.list_sessions(guest, page(10), owned=True, shared=True, status=None)
    share, created = await chat.shares.share_session(chat.alice, session.id, "eve", Permission.READ)
    assert (share.user_id, share.permission, created) == ("eve", Permission.READ, True)
    listed = await chat.sessions.list_sessions(guest, page(10), owned=True, shared=True, status=None)
    assert [(found.id, found.permission, found.is_shared) for found in listed.entries] == [
        (session.id, Permission.READ, True)
    ]
    again, created = await chat.shares.share_session(chat.alice, session.id, "eve", Permission.WRITE)
    assert (again.permission, created) == (Permission.WRITE, False)
    await chat.shares.revoke_share(chat.alice, session.id, "eve")
    with pytest.raises(NotFound):
        await chat.sessions.get_session(guest, session.id)
    with pytest.raises(NotFound):
        await chat.shares.revoke_share(chat.alice, session.id, "eve")


async def test_only_the_owner_changes_shares_publishes_and_deletes(chat: Chat) -> None:
    session = await chat.session()
    await chat.shares.share_session(chat.alice, session.id, "bob", Permission.WRITE)
    actions = (
        lambda who: chat.shares.share_session(who, session.id, "eve", Permission.READ),
        lambda who: chat.shares.list_shares(who, session.id, page(10)),
        lambda who: chat.shares.revoke_share(who, session.id, "bob"),
        lambda who: chat.shares.toggle_public(who, session.id),
        lambda who: chat.sessions.update_session(who, session.id, SessionSettings(), ["name"], if_version=None),
        lambda who: chat.sessions.delete_session(who, session.id, if_version=None),
    )
    for act in actions:
        with pytest.raises(PermissionDenied):
            await act(chat.bob)
        with pytest.raises(NotFound):
            await act(Caller("eve", WORKSPACE, Role.MEMBER))
    shares = await chat.shares.list_shares(chat.alice, session.id, page(10))
    assert [share.user_id for share in shares.entries] == ["bob"]


async def test_an_admin_deletes_any_session_of_the_workspace_but_sees_none(chat: Chat) -> None:
    session = await chat.session()
    with pytest.raises(NotFound):
        await chat.shares.toggle_public(ADMIN, session.id)
    await chat.sessions.delete_session(ADMIN, session.id, if_version=None)
    with pytest.raises(NotFound):
        await chat.sessions.get_session(chat.alice, session.id)


async def test_a_public_link_is_new_each_time_and_dead_when_switched_off(chat: Chat) -> None:
    session = await chat.session(name="Public", system_prompt="secret")
    await chat.send(session.id, "Hello?")
    await chat.answer("Hi.")
    first = (await chat.shares.toggle_public(chat.alice, session.id)).shareable_link_id
    assert first is not None
    assert first.version == 4
    shown = await chat.shares.get_public_session(first)
    assert (shown.name, [(message.role, message.content) for message in shown.messages]) == (
        "Public",
        [("user", "Hello?"), ("assistant", "Hi.")],
    )
    assert (await chat.shares.toggle_public(chat.alice, session.id)).shareable_link_id is None
    with pytest.raises(NotFound):
        await chat.shares.get_public_session(first)
    second = (await chat.shares.toggle_public(chat.alice, session.id)).shareable_link_id
    assert second not in (None, first)
    with pytest.raises(NotFound):
        await chat.shares.get_public_session(first)


async def test_an_update_changes_what_it_names_and_counts_a_version(chat: Chat) -> None:
    session = await chat.session(name="old", temperature=0.5, model_parameters={"top_k": 3})
    changed = await chat.sessions.update_session(
        chat.alice,
        session.id,
        SessionSettings(name="new", status=SessionStatus.ARCHIVED),
        ["name", "status"],
        if_version=1,
    )
    assert (changed.settings.name, changed.settings.status, changed.settings.temperature) == ("new", "archived", 0.5)
    assert changed.settings.model_parameters == {"top_k": 3}
    assert changed.version == 2
    with pytest.raises(VersionMismatch):
        await chat.sessions.update_session(chat.alice, session.id, SessionSettings(), ["name"], if_version=1)
    with pytest.raises(ProviderNotConfigured):
        await chat.sessions.update_session(
            chat.alice, session.id, SessionSettings(ai_provider="google"), ["ai_provider"], if_version=None
        )


async def test_pages_of_sessions_walk_forth_and_back_by_activity(chat: Chat) -> None:
    sessions = [await chat.session(name=str(number)) for number in range(7)]
    await chat.send(sessions[0].id)

    async def listed(token: str) -> tuple[list[str | None], str, str]:
        found = await chat.sessions.list_sessions(chat.alice, page(3, token), owned=True, shared=True, status=None)
        return [session.settings.name for session in found.entries], found.next_token, found.previous_token

    first, after_first, before_first = await listed("")
    second, after_second, before_second = await listed(after_first)
    third, after_third, _ = await listed(after_second)
    assert (first, second, third) == (["0", "6", "5"], ["4", "3", "2"], ["1"])
    assert (before_first, after_third) == ("", "")
    assert (await listed(before_second))[0] == first
    with pytest.raises(InvalidCursor):
        await listed("after:rubbish")


async def test_sessions_can_be_listed_by_scope_and_status(chat: Chat) -> None:
    mine = await chat.session()
    theirs = await chat.sessions.create_session(chat.bob, SessionSettings(status=SessionStatus.COMPLETED), None)
    await chat.shares.share_session(chat.bob, theirs.id, "alice", Permission.READ)

    async def ids(*, owned: bool, shared: bool, status: SessionStatus | None = None) -> set[object]:
        found = await chat.sessions.list_sessions(chat.alice, page(10), owned=owned, shared=shared, status=status)
        return {session.id for session in found.entries}

    assert await ids(owned=True, shared=True) == {mine.id, theirs.id}
    assert await ids(owned=True, shared=False) == {mine.id}
    assert await ids(owned=False, shared=True) == {theirs.id}
    assert await ids(owned=True, shared=True, status=SessionStatus.COMPLETED) == {theirs.id}


async def test_messages_are_listed_both_ways_and_numbers_are_never_used_again(chat: Chat) -> None:
    session = await chat.session()
    await chat.send(session.id, "one")
    await chat.answer("two")
    second = await chat.send(session.id, "three")
    await chat.answer("four")
    assert second.task.user_message_id is not None
    await chat.sessions.delete_message(chat.alice, session.id, second.task.user_message_id)
    await chat.send(session.id, "five")
    up = await chat.sessions.list_messages(chat.alice, session.id, page(2), descending=False)
    assert [(message.sequence_number, message.content) for message in up.entries] == [(1, "one"), (2, "two")]
    down = await chat.sessions.list_messages(chat.alice, session.id, page(2), descending=True)
    assert [(message.sequence_number, message.content) for message in down.entries] == [(5, "five"), (2, "two")]
    rest = await chat.sessions.list_messages(chat.alice, session.id, page(2, down.next_token), descending=True)
    assert [message.content for message in rest.entries] == ["one"]
    assert (await chat.sessions.get_session(chat.alice, session.id)).message_count == 3


async def test_messages_can_not_be_deleted_while_a_task_runs(chat: Chat) -> None:
    session = await chat.session()
    turn = await chat.send(session.id)
    assert turn.user_message is not None
    with pytest.raises(TaskInProgress) as refusal:
        await chat.sessions.delete_message(chat.alice, session.id, turn.user_message.id)
    assert refusal.value.metadata["task_id"] == str(turn.task.id)
    await chat.answer()
    await chat.shares.share_session(chat.alice, session.id, "bob", Permission.WRITE)
    with pytest.raises(PermissionDenied):
        await chat.sessions.delete_message(chat.bob, session.id, turn.user_message.id)
    await chat.sessions.delete_message(chat.alice, session.id, turn.user_message.id)
    with pytest.raises(NotFound):
        await chat.sessions.delete_message(chat.alice, session.id, turn.user_message.id)
    other = await chat.session()
    with pytest.raises(NotFound):
        await chat.sessions.get_message(chat.alice, other.id, turn.user_message.id)


async def test_search_finds_words_in_names_and_messages_of_own_sessions_best_first(chat: Chat) -> None:
    named = await chat.session(name="Owls of the north")
    told = await chat.session(name="Birds")
    await chat.send(told.id, "Do owls sleep at night?")
    await chat.answer("Some owls do.")
    await chat.session(name="Fish")
    foreign = await chat.sessions.create_session(chat.bob, SessionSettings(name="owls"), None)
    await chat.shares.share_session(chat.bob, foreign.id, "alice", Permission.READ)

    async def found(words: str, token: str = "", limit: int = 10) -> tuple[list[object], str]:
        hits = await chat.sessions.search_sessions(chat.alice, page(limit, token), words, status=None)
        return [session.id for session in hits.entries], hits.next_token

    assert (await found("owls"))[0] == [named.id, told.id]
    assert (await found("owls -north"))[0] == [told.id]
    assert (await found("'; drop table"))[0] == []
    first, after = await found("owls", limit=1)
    assert (first, (await found("owls", after, limit=1))[0]) == ([named.id], [told.id])
    with pytest.raises(InvalidCursor):
        await found("owls", "after:rubbish")
    with pytest.raises(InvalidArgument):
        await found("a\x00b")


async def test_nul_is_refused_wherever_text_is_stored(chat: Chat) -> None:
    for settings in ({"name": "a\x00"}, {"system_prompt": "\x00"}, {"model_parameters": {"a": ["\x00"]}}):
        with pytest.raises(InvalidArgument):
            await chat.session(**settings)
    session = await chat.session()
    with pytest.raises(InvalidArgument):
        await chat.send(session.id, "a\x00b")


async def test_one_key_shares_once_and_its_repeats_are_told_the_same(chat: Chat) -> None:
    session, key = await chat.session(), Key("alice", "share:s", "k", b"same")
    first = await chat.shares.share_session(chat.alice, session.id, "bob", Permission.READ, key)
    assert first[1] is True
    assert await chat.shares.share_session(chat.alice, session.id, "bob", Permission.READ, key) == first
    update = Key("alice", "share:s", "another", b"other")
    _, created = await chat.shares.share_session(chat.alice, session.id, "bob", Permission.WRITE, update)
    assert created is False
    repeated, created = await chat.shares.share_session(chat.alice, session.id, "bob", Permission.WRITE, update)
    assert (repeated.permission, created) == (Permission.WRITE, False)


async def test_a_repeated_share_does_not_bring_back_what_was_revoked(chat: Chat) -> None:
    session, key = await chat.session(), Key("alice", "share:s", "k", b"same")
    await chat.shares.share_session(chat.alice, session.id, "bob", Permission.READ, key)
    await chat.shares.revoke_share(chat.alice, session.id, "bob")
    with pytest.raises(NotFound):
        await chat.shares.share_session(chat.alice, session.id, "bob", Permission.READ, key)
    with pytest.raises(NotFound):
        await chat.sessions.get_session(chat.bob, session.id)


async def test_one_key_switches_the_public_link_once_also_when_twins_race(chat: Chat) -> None:
    session, key = await chat.session(), Key("alice", "toggle:s", "k", b"")
    twins = await asyncio.gather(*(chat.shares.toggle_public(chat.alice, session.id, key) for _ in range(10)))
    (link,) = {twin.shareable_link_id for twin in twins}
    assert link is not None
    off = Key("alice", "toggle:s", "k2", b"")
    for _ in range(2):
        assert (await chat.shares.toggle_public(chat.alice, session.id, off)).shareable_link_id is None


async def test_a_key_whose_call_was_refused_is_free(chat: Chat) -> None:
    session, key = await chat.session(), Key("bob", "toggle:s", "k", b"")
    await chat.shares.share_session(chat.alice, session.id, "bob", Permission.WRITE)
    with pytest.raises(PermissionDenied):
        await chat.shares.toggle_public(chat.bob, session.id, key)
    assert await chat.sql("select count(*) from chat.idempotency_keys") == [(0,)]


async def test_a_key_that_was_used_with_another_body_is_refused(chat: Chat) -> None:
    session = await chat.session()
    await chat.shares.share_session(chat.alice, session.id, "bob", Permission.READ, Key("alice", "share:s", "k", b"1"))
    with pytest.raises(IdempotencyKeyReused):
        await chat.shares.share_session(
            chat.alice, session.id, "eve", Permission.READ, Key("alice", "share:s", "k", b"2")
        )


async def test_a_repeated_opening_brings_the_session_also_when_the_credits_are_gone(chat: Chat) -> None:
    key = Key("alice", "create", "k", b"same")
    first = await chat.sessions.create_session(chat.alice, SessionSettings(), key)
    chat.billing.credit = 0
    assert (await chat.sessions.create_session(chat.alice, SessionSettings(), key)).id == first.id


async def test_a_search_among_what_others_share_finds_nothing(chat: Chat) -> None:
    session = await chat.session(name="needle")
    await chat.shares.share_session(chat.alice, session.id, "bob", Permission.READ)
    for caller, owned in ((chat.bob, True), (chat.alice, False)):
        found = await chat.sessions.search_sessions(caller, page(10), "needle", owned=owned, status=None)
        assert not found.entries
