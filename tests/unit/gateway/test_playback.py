"""Playback: whatever is lost, repeated or out of order, each thing is shown once, or it is known that it was not."""

import random

import pytest
from backendai.chat.v1 import chat_pb2

from gateway.playback import START, Playback, Position, Taken, sealed
from tests.unit.gateway.samples import a_completed_task, a_failed_task, an_answer


def delta(attempt: int, seq: int, text: str = "x") -> chat_pb2.TaskEvent:
    return chat_pb2.TaskEvent(attempt=attempt, seq=seq, delta=text)


def reset(attempt: int, seq: int) -> chat_pb2.TaskEvent:
    return chat_pb2.TaskEvent(attempt=attempt, seq=seq, reset=chat_pb2.Reset())


def a_task(text: str, **changes: object) -> chat_pb2.Task:
    return a_completed_task(**{"attempt": 1, "ai_messages": [an_answer(content=text)], **changes})


def take(playback: Playback, *events: chat_pb2.TaskEvent) -> list[Taken]:
    return [playback.take(event) for event in events]


def test_events_are_shown_once_in_order() -> None:
    playback = Playback()
    assert take(playback, delta(1, 1), delta(1, 2), delta(1, 1), delta(1, 2), delta(1, 3)) == [
        Taken.SHOWN,
        Taken.SHOWN,
        Taken.KNOWN,
        Taken.KNOWN,
        Taken.SHOWN,
    ]


def test_an_event_after_a_gap_is_not_taken_until_the_gap_is_closed() -> None:
    playback = Playback()
    assert take(playback, delta(1, 1), delta(1, 3), delta(1, 2), delta(1, 3)) == [
        Taken.SHOWN,
        Taken.GAP,
        Taken.SHOWN,
        Taken.SHOWN,
    ]


def test_a_beginning_that_is_missing_is_a_gap() -> None:
    assert take(Playback(), delta(1, 2)) == [Taken.GAP]


def test_a_reset_closes_any_gap() -> None:
    playback = Playback()
    assert take(playback, delta(1, 1, "lost"), reset(1, 7), delta(1, 8, "all of it")) == [Taken.SHOWN] * 3
    assert playback.has_told(a_task("all of it"))


def test_events_of_a_replaced_attempt_are_dropped() -> None:
    playback = Playback()
    take(playback, delta(1, 1, "old"), reset(2, 1), delta(2, 2, "new"))
    assert take(playback, delta(1, 2, "zombie")) == [Taken.KNOWN]
    assert playback.has_told(a_task("new", attempt=2))


def test_a_resumed_client_is_shown_only_what_it_has_not_seen_and_all_of_it_counts() -> None:
    playback = Playback(Position(1, 2))
    assert take(playback, delta(1, 1, "a"), delta(1, 2, "b"), delta(1, 3, "c")) == [
        Taken.KNOWN,
        Taken.KNOWN,
        Taken.SHOWN,
    ]
    assert playback.has_told(a_task("abc"))


def test_a_client_that_has_seen_more_than_is_known_here_has_not_been_told() -> None:
    playback = Playback(Position(1, 9))
    take(playback, delta(1, 1, "abc"))
    assert not playback.has_told(a_task("abc"))


def test_a_client_that_has_seen_the_terminal_event_is_told_and_gets_it_again_under_its_id() -> None:
    playback = Playback(Position(1, 2))
    take(playback, delta(1, 1, "abc"))
    assert playback.has_told(a_task("abc"))
    assert playback.end_of(a_task("abc")) == Position(1, 2)


@pytest.mark.parametrize("stored", ["", "ab", "abcd", "abd", "äbc"])
def test_a_text_that_differs_in_anything_has_not_been_told(stored: str) -> None:
    playback = Playback()
    take(playback, delta(1, 1, "ab"), delta(1, 2, "c"))
    assert not playback.has_told(a_task(stored))
    assert playback.has_told(a_task("abc"))


def test_only_what_the_assistant_said_counts() -> None:
    playback = Playback()
    take(playback, delta(1, 1, "Let me see."), delta(1, 2, "It is 3."))
    messages = [an_answer(content="Let me see."), an_answer(role="tool", content="3"), an_answer(content="It is 3.")]
    assert playback.has_told(a_task("", ai_messages=messages))


def test_a_failed_run_has_nothing_left_to_tell() -> None:
    assert Playback(Position(1, 5)).has_told(a_failed_task())


def test_the_end_comes_after_whatever_was_shown() -> None:
    playback = Playback()
    take(playback, delta(1, 1), delta(1, 2))
    assert playback.end_of(a_task("xx")) == Position(1, 3)
    assert playback.end_of(a_task("xx", attempt=2)) == Position(2, 1)
    assert Playback().end_of(a_task("", attempt=0)) == Position(0, 1)


def test_a_sealed_answer_comes_after_every_attempt() -> None:
    places = sealed(a_task("abc", attempt=2))
    assert Position(2, 10**9) < places.reset < places.answer < places.end
    playback = Playback(places.answer)
    assert playback.end_of(a_task("abc", attempt=2)) == places.end


def test_any_mixture_of_losses_repeats_and_replays_shows_the_text_or_admits_that_it_did_not() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        stored = [delta(1, 1, "a"), delta(1, 2, "b"), reset(2, 1)]
        stored += [delta(2, number, f"{number} ") for number in range(2, 30)]
        text = "".join(event.delta for event in stored[3:])
        playback, shown = Playback(), ""
        heard = [event for event in stored if chance.random() < 0.9]
        heard += chance.sample(stored, 5)
        for event in [*heard, *chance.choice(([], stored))]:
            if playback.take(event) is Taken.SHOWN:
                shown = "" if event.WhichOneof("event") == "reset" else shown + event.delta
        assert playback.has_told(a_task(text, attempt=2)) == (shown == text)
        assert playback.seen >= START
