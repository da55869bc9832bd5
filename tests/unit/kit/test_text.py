"""Text that Postgres is to store."""

import pytest

from services.kit.callers import check_user_id
from services.kit.errors import InvalidArgument
from services.kit.text import check_key, check_text, replace_unstorable, storable


@pytest.mark.parametrize("text", ["a", "abc", "𝄞𝄞𝄞"])
def test_a_text_of_the_right_length_passes(text: str) -> None:
    assert check_text(text, field="name", least=1, most=3) == text


@pytest.mark.parametrize("text", ["", "abcd", "\0", "a\0b"])
def test_a_text_that_is_too_short_too_long_or_has_nul_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        check_text(text, field="name", least=1, most=3)
    assert refusal.value.metadata == {"field": "name"}


@pytest.mark.parametrize("key", ["k", "a key with blanks ~", "k" * 255])
def test_a_key_is_printable_ascii(key: str) -> None:
    assert check_key(key, field="route") == key


@pytest.mark.parametrize("key", ["", "k" * 256, "k\0", "k\n", "k\x7f", "clé"])
def test_what_is_no_key_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        check_key(key, field="route")
    assert refusal.value.metadata == {"field": "route"}


@pytest.mark.parametrize("user_id", ["", " ", "\u2003", "a\0", "a" * 256])
def test_what_is_no_user_is_refused_by_its_name(user_id: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        check_user_id(user_id, field="caller.user_id")
    assert refusal.value.metadata == {"field": "caller.user_id"}


def test_storable_leaves_out_nul_wherever_it_is() -> None:
    document = {"a\0": ["\0", {"b": "c\0d"}, 1, 0.5, None, True], "e": "f"}
    assert storable(document) == {"a": ["", {"b": "cd"}, 1, 0.5, None, True], "e": "f"}
    assert storable("a\0b") == "ab"
    assert storable(None) is None


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("a\0b", "a\ufffdb"),
        ("ä\0b", "ä\ufffdb"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00b", "\ufffdb"),
        ("\ud83d\ude00", "😀"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("", ""),
        ("grüße, 😀", "grüße, 😀"),
    ],
)
def test_nul_and_half_a_surrogate_pair_become_the_replacement_character(text: str, replaced: str) -> None:
    assert replace_unstorable(text) == replaced
