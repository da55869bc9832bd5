"""A translation is read where it is without doubt, whatever the model wrote around it."""

import json
from typing import Any

import pytest

from services.common.providers.errors import ContentFiltered, ProviderBadResponse, ProviderError, ProviderUnavailable
from services.common.providers.refusals import Refused
from services.translate.domain import Usage
from services.translate.languages import read_tag
from services.translate.providers import CutOff
from services.translate.providers.completions import Completion, read_completion
from services.translate.providers.wire import Translated, answer_of, read
from tests.unit.translate.conftest import a_job

GOOD = '{"source": "en", "translated_text": "Hallo"}'
HALLO = Translated(source="en", translated_text="Hallo")


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        f"\ufeff \n{GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}```",
        f"Here is the translation:\n\n{GOOD}\n\nLet me know if you need more!",
        f"[{GOOD}]",
        f'{{"translation": {GOOD}}}',
        f"{GOOD}\n{GOOD}",
        f"<think>\nThe text is {{English}}.\n</think>\n\n{GOOD}",
        '{"source": "en", "translated_text": "Hallo", "note": "!"}',
        '{"note": {"a": [1, 2]}, "translated_text": "Hallo", "source": "en", "others": [{"translated_text": "Hi"}]}',
    ],
)
def test_a_translation_is_read_where_it_is_without_doubt(content: str) -> None:
    assert read(content) == HALLO


@pytest.mark.parametrize(
    "content",
    [
        *("", "Hallo", "null", "[]", "{}", '{"source": "en"}', '{"source": "en", "translated_text": 5}'),
        '{"source": "en", "translated_text": "Hal',
        f'{GOOD} or rather {{"source": "en", "translated_text": "Guten Tag"}}',
        f"{{{GOOD}",
        '{"source": "en", "translated_text": "Write {"translated_text": "b", "source": "a"} here"}',
        '{"a":' * 100_000,
        "{" * 100_000,
        '{"n": ' + "9" * 10_000 + "}",
        f'{{"source": "en", "translated_text": "{"a" * 1_100_000}"}}',
    ],
    ids=lambda content: content[:40],
)
def test_what_leaves_doubt_is_not_read(content: str) -> None:
    with pytest.raises(ProviderBadResponse):
        read(content)


def test_a_line_break_within_the_translation_may_stand_as_it_is() -> None:
    assert read('{"source": "en", "translated_text": "a\nb"}').translated_text == "a\nb"


@pytest.mark.parametrize(
    ("written", "read_as"),
    [(r"a\ud83d", "a\ufffd"), (r"\ud83d\ude00", "😀"), (r"a\u0000b", "a\ufffdb"), (r"\ude00\ud83d", "\ufffd\ufffd")],
)
def test_nul_and_half_a_surrogate_pair_become_the_replacement_character(written: str, read_as: str) -> None:
    assert read(f'{{"source": "en", "translated_text": "{written}"}}').translated_text == read_as


@pytest.mark.parametrize(
    ("said", "tag"),
    [
        *(("en", "en"), ("EN", "en"), ("en_US", "en-US"), ("English", "en"), ("english", "en"), (" de ", "de")),
        *(("Deutsch", "de"), ("zh_Hans_CN", "zh-Hans-CN"), ("Simplified Chinese", "zh-Hans"), ("und", "und")),
        *(("", None), ("unknown", None), ("the language is English", None), ("\ud83d", None), ("en\0glish", None)),
        ("English" * 10, None),
    ],
)
def test_a_language_is_read_from_its_tag_or_its_name(said: str, tag: str | None) -> None:
    assert read_tag(said) == tag


# --- completions ---


def body(choice: Any = None, **fields: Any) -> bytes:
    """A completion with one choice."""
    return json.dumps({"choices": [choice] if choice is not None else [], **fields}).encode()


def message(content: Any, finish_reason: Any = "stop", **fields: Any) -> dict[str, Any]:
    """A choice."""
    return {"index": 0, "message": {"role": "assistant", "content": content, **fields}, "finish_reason": finish_reason}


@pytest.mark.parametrize(
    "content",
    [
        "Hallo",
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "Hallo"}],
        [{"text": "Hal"}, {"type": "output_text", "text": "lo"}, "?", {"type": "image"}],
    ],
)
def test_the_content_is_text_or_a_list_of_parts(content: Any) -> None:
    assert read_completion("openai", body(message(content))).content == "Hallo"


@pytest.mark.parametrize(
    ("choice", "error"),
    [
        (message("Ha", "length"), CutOff),
        (message("Ha", "max_tokens"), CutOff),
        (message("Ha", "model_length"), CutOff),
        (message(None, "content_filter"), ContentFiltered),
        (message("No.", "refusal"), ContentFiltered),
        (message(None, "stop", refusal="I can't."), ContentFiltered),
        (message("Ha", "error"), ProviderUnavailable),
        ({"index": 0}, ProviderBadResponse),
        ({"message": "Hallo"}, ProviderBadResponse),
        ("Hallo", ProviderBadResponse),
        (None, ProviderBadResponse),
    ],
)
def test_an_answer_that_did_not_come_to_its_end_is_an_error(choice: Any, error: type[ProviderError]) -> None:
    with pytest.raises(error):
        read_completion("openai", body(choice))


@pytest.mark.parametrize("sent", [b"", b"null", b"[]", b"<html>", b'{"choices": [', b"\xff", b"[" * 100_000])
def test_what_is_no_completion_is_a_bad_response(sent: bytes) -> None:
    with pytest.raises(ProviderBadResponse):
        read_completion("openai", sent)


@pytest.mark.parametrize(
    "sent",
    [
        {"error": {"message": "Rate limit reached", "code": 429}},
        {"choices": [{"error": {"message": "Rate limit reached", "code": 429}, "finish_reason": "error"}]},
    ],
)
def test_an_error_with_a_status_of_200_is_the_error_that_it_is(sent: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        read_completion("openai", json.dumps(sent).encode())
    assert caught.value.refusal.status == 429


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, (10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}, (10, 105)),
        ({"prompt_tokens": 10, "completion_tokens": None}, (10, None)),
        ({"prompt_tokens": -1, "completion_tokens": 0.5}, (None, None)),
        ({"prompt_tokens": 2**70, "completion_tokens": "5"}, (None, None)),
        ({"prompt_tokens": True}, (None, None)),
        (None, (None, None)),
        ("many", (None, None)),
    ],
)
def test_counts_are_read_where_they_can_be_counts(usage: Any, counts: tuple[int | None, int | None]) -> None:
    made = read_completion("openai", body(message("Hallo"), usage=usage))
    assert made == Completion("Hallo", *counts)


@pytest.mark.parametrize(
    ("counts", "usage"),
    [((100, 5), Usage(100, 5)), ((0, 5), Usage(0, 5))],
)
def test_a_reported_usage_is_taken_as_it_is(counts: tuple[int, int], usage: Usage) -> None:
    assert answer_of(a_job(), GOOD, input_tokens=counts[0], output_tokens=counts[1]).usage == usage


@pytest.mark.parametrize(
    ("counts", "kept"),
    [((None, None), {}), ((0, 0), {}), ((100, 0), {"input_tokens": 100}), ((None, 5), {"output_tokens": 5})],
)
def test_a_count_that_is_missing_or_zero_is_estimated(
    counts: tuple[int | None, int | None], kept: dict[str, int]
) -> None:
    usage = answer_of(a_job(), GOOD, input_tokens=counts[0], output_tokens=counts[1]).usage
    assert usage.estimated
    assert usage.input_tokens == kept.get("input_tokens", usage.input_tokens) > 0
    assert usage.output_tokens == kept.get("output_tokens", usage.output_tokens) > 0
