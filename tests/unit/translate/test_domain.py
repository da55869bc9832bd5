"""Languages, texts, and who may have them translated."""

import pytest
from langcodes import Language

from services.kit.callers import Role
from services.kit.errors import DomainError, InvalidArgument, NotFound, PermissionDenied
from services.translate import languages
from services.translate.domain import Job, Usage
from services.translate.errors import LanguageUnknown
from services.translate.languages import find_language, find_tag
from tests.unit.translate.conftest import a_caller, a_job


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("en", "en"),
        ("EN-us", "en-US"),
        ("zh-hant-tw", "zh-Hant-TW"),
        ("sr-Latn", "sr-Latn"),
        ("es-419", "es-419"),
        ("de-CH-1996", "de-CH-1996"),
        ("iw", "he"),
        ("zh-yue", "yue"),
        ("tlh", "tlh"),
    ],
)
def test_a_language_has_one_canonical_tag(given: str, canonical: str) -> None:
    assert find_language(given) == canonical


@pytest.mark.parametrize(
    "given",
    [
        *("", "xx", "xx-nope", "german", "en_US", "en US", " en", "en-", "e", "ça", "en\0", "en-000", "de-1901-1901"),
        *("und", "mul", "zxx", "mis", "qaa", "qtz-DE", "x-private", "i-klingon", "en-x-ignore-all", "de-u-co-phonebk"),
        *("en-" + "a" * 5_000, "en-" * 100, "*", "../etc"),
    ],
)
def test_what_is_no_registered_language_is_none(given: str) -> None:
    assert find_language(given) is None


@pytest.mark.parametrize("tag", ["und", "mul", "zxx", "en"])
def test_a_text_may_be_found_to_have_no_language(tag: str) -> None:
    assert find_tag(tag) == tag


def test_made_up_tags_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "MAX_REMEMBERED", 100)
    for number in range(1_000):
        find_tag(f"en-{number:05}")
    assert len(Language._PARSE_CACHE) <= 101
    assert len(Language._INSTANCES) <= 101


@pytest.mark.parametrize("text", ["a", "a" * 5_000, "🎉" * 5_000, "e" + "\u0301" * 4_999, "\u202eabc"])
def test_a_text_has_up_to_5000_characters_of_any_kind(text: str) -> None:
    assert a_job(text).text == text


@pytest.mark.parametrize("text", ["", " \n\t", "a" * 5_001])
def test_no_text_and_too_much_of_it_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        a_job(text)


@pytest.mark.parametrize(("target", "source", "field"), [("xx-nope", "", "target"), ("de", "klingon!", "source")])
def test_an_unknown_language_is_refused_by_its_field(target: str, source: str, field: str) -> None:
    with pytest.raises(LanguageUnknown) as caught:
        Job.parse(text="Hello", target=target, source=source)
    assert (caught.value.metadata, caught.value.detail.split()[0]) == ({"field": field}, field)


def test_a_longer_text_may_have_a_longer_answer() -> None:
    assert a_job("a").output_tokens == 4_102
    assert a_job("a" * 5_000).output_tokens == 34_096


@pytest.mark.parametrize("role", [Role.MEMBER, Role.ADMIN, Role.OWNER])
def test_members_may_spend(role: Role) -> None:
    a_caller(role=role).must_spend()


@pytest.mark.parametrize(("role", "error"), [(Role.VIEWER, PermissionDenied), (Role.GUEST, NotFound)])
def test_viewers_may_not_and_guests_learn_nothing(role: Role, error: type[DomainError]) -> None:
    with pytest.raises(error):
        a_caller(role=role).must_spend()


def test_an_estimate_counts_bytes() -> None:
    assert Usage.estimate(sent="abcde", received="ü") == Usage(2, 1, estimated=True)
