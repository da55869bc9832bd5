"""A translation is held, asked for, settled and kept; identical ones are one."""

import asyncio
import time
from contextlib import suppress

import pytest

from services.common.providers.errors import ProviderTimeout
from services.kit.callers import Role
from services.kit.errors import DomainError, PermissionDenied, Unavailable
from services.translate.domain import Translation
from services.translate.languages import MAX_TAG_CHARACTERS
from services.translate.providers.google import Google
from services.translate.providers.openai import OpenAI
from services.translate.providers.placeholder import Placeholder
from services.translate.usecases import Paid, Translations
from tests.fakes.billing import FakeBilling
from tests.fakes.gemini import FakeGemini
from tests.fakes.openai import FakeOpenAI
from tests.fakes.provider import Behaviour
from tests.unit.translate.conftest import a_caller, a_job, translated, translating

UNFIT = Behaviour("Hallo Welt")


async def translate(translations: Translations, text: str = "Hello world", **changes: str) -> Paid:
    """One translation for a caller of a fresh workspace."""
    return await translations.translate(a_caller(), a_job(text, **changes), patience_seconds=None)


async def failure(translations: Translations) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await translate(translations)
    return caught.value


# --- money ---


async def test_a_translation_pays_what_it_used(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = translated(output_tokens=20, thinking_tokens=7)
    paid = await translate(translations)
    assert paid == Paid(Translation("Hallo Welt", "en", "de", "openai", "gpt-4.1-mini"), 127)
    [settlement] = billing.settled
    assert (settlement.usage.input_tokens, settlement.usage.output_tokens) == (100, 27)
    assert not billing.open_holds


async def test_a_hold_names_what_it_is_for_and_gives_itself_back(openai: OpenAI, billing: FakeBilling) -> None:
    caller = a_caller(user_id="bob")
    async with translating(openai, billing, clock=lambda: 1_000.5) as translations:
        await translations.translate(caller, a_job(), patience_seconds=None)
    [hold] = billing.held
    assert (hold.user_id, hold.workspace_id) == ("bob", str(caller.workspace_id))
    assert (hold.kind, hold.provider, hold.model) == (3, "openai", "gpt-4.1-mini")
    assert hold.max_output_tokens == a_job().output_tokens
    assert 300 < hold.input_tokens < 600
    assert hold.expires_at.ToMicroseconds() == 1_090_500_000


async def test_the_hold_comes_before_the_call_and_the_settlement_before_the_answer(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    billing.gates = {"HoldCredits": asyncio.Event(), "SettleHolds": asyncio.Event()}
    asking = asyncio.create_task(translate(translations))
    await billing.until(lambda: billing.calls["HoldCredits"])
    assert not openai_fake.requests
    billing.gates["HoldCredits"].set()
    await billing.until(lambda: billing.calls["SettleHolds"])
    assert not asking.done()
    billing.gates["SettleHolds"].set()
    assert (await asking).charged_nano > 0


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(error="invalid_key"), "PROVIDER_AUTH_FAILED"),
        (Behaviour(error="overloaded"), "PROVIDER_UNAVAILABLE"),
        (Behaviour(fault="hang_up"), "PROVIDER_UNAVAILABLE"),
        (Behaviour(fault="malformed"), "PROVIDER_BAD_RESPONSE"),
        (Behaviour(refusal="No."), "CONTENT_FILTERED"),
        (UNFIT, "PROVIDER_BAD_RESPONSE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_failure_gives_the_hold_back_before_it_is_told(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI, behaviour: Behaviour, reason: str
) -> None:
    openai_fake.default = behaviour
    assert (await failure(translations)).reason == reason
    assert (billing.settled, billing.open_holds) == ([], set())
    assert len(billing.released) == 1


async def test_without_credits_nobody_is_asked(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    billing.available_output_tokens = 100
    assert (await failure(translations)).reason == "INSUFFICIENT_CREDITS"
    assert not openai_fake.requests
    assert not billing.released


async def test_with_few_credits_the_answer_may_be_as_long_as_they_buy(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    billing.available_output_tokens = 300
    assert (await translate(translations)).translation.translated_text == "Hallo Welt"
    assert openai_fake.requests[0].json["max_completion_tokens"] == 300


async def test_an_answer_that_the_credits_did_not_buy_to_its_end_costs_nothing(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    billing.available_output_tokens = 300
    openai_fake.default = translated(finish_reason="length")
    assert (await failure(translations)).reason == "INSUFFICIENT_CREDITS"
    assert len(openai_fake.requests) == 1
    assert (billing.settled, billing.open_holds) == ([], set())


async def test_billing_that_is_away_at_the_settlement_is_asked_again(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    billing.refusals["SettleHolds"] = 2
    assert (await translate(translations)).charged_nano > 0
    assert len(billing.settled) == len(openai_fake.requests) == 1


async def test_billing_that_is_away_at_the_hold_is_unavailable_and_in_doubt_the_hold_is_given_back(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    billing.refusals["HoldCredits"] = 1
    assert (await failure(translations)).reason == "UNAVAILABLE"
    assert not openai_fake.requests
    assert len(billing.released) == 1


async def test_billing_that_nobody_runs_is_unavailable_at_once(openai: OpenAI, openai_fake: FakeOpenAI) -> None:
    billing = FakeBilling(1)
    async with translating(openai, billing) as translations:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await translate(translations)
    assert time.monotonic() - started < 3
    assert not openai_fake.requests


async def test_a_viewer_spends_nothing(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    with pytest.raises(PermissionDenied):
        await translations.translate(a_caller(role=Role.VIEWER), a_job(), patience_seconds=None)
    assert not billing.held
    assert not openai_fake.requests


# --- the answer ---


@pytest.mark.parametrize(("said", "told"), [("en", "en"), ("EN-us", "en-US"), ("iw", "he"), ("und", "und")])
async def test_the_detected_language_is_told_in_canonical_form(
    translations: Translations, openai_fake: FakeOpenAI, said: str, told: str
) -> None:
    openai_fake.default = translated(source=said)
    assert (await translate(translations)).translation.source == told


async def test_a_source_that_is_given_is_kept_whatever_the_model_says(
    translations: Translations, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = translated(source="English")
    assert (await translate(translations, source="EN-gb")).translation.source == "en-GB"


async def test_a_text_equal_in_both_languages_is_a_translation(
    translations: Translations, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = translated("Berlin")
    assert (await translate(translations, "Berlin", source="de")).translation.translated_text == "Berlin"


@pytest.mark.parametrize(
    "unfit",
    [
        UNFIT,
        Behaviour(fault="malformed"),
        translated(""),
        translated(" \n"),
        translated(source="the language of the text"),
        translated(source=""),
        translated(source="x" * (MAX_TAG_CHARACTERS + 1)),
        translated(finish_reason="length"),
    ],
)
async def test_an_answer_that_does_not_fit_is_asked_for_once_more(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI, unfit: Behaviour
) -> None:
    openai_fake.queue.append(unfit)
    assert (await translate(translations)).translation.translated_text == "Hallo Welt"
    assert len(openai_fake.requests) == 2
    assert len(billing.held) == len(billing.settled) == 1


async def test_gemini_is_asked_once_more_as_well(google: Google, gemini_fake: FakeGemini, billing: FakeBilling) -> None:
    gemini_fake.queue.append(UNFIT)
    async with translating(google, billing) as translations:
        paid = await translate(translations)
    assert (paid.translation.provider, paid.translation.model) == ("google", "gemini-3.5-flash-lite")
    assert len(gemini_fake.requests) == 2


async def test_the_second_answer_that_does_not_fit_is_the_last(
    translations: Translations, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = UNFIT
    assert (await failure(translations)).reason == "PROVIDER_BAD_RESPONSE"
    assert len(openai_fake.requests) == 2


async def test_only_the_answer_that_is_given_is_paid(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.append(Behaviour("no", input_tokens=5_000))
    openai_fake.default = translated(output_tokens=10)
    assert (await translate(translations)).charged_nano == 110


async def test_a_passing_failure_of_the_provider_is_tried_again(
    translations: Translations, openai_fake: FakeOpenAI
) -> None:
    openai_fake.queue.extend([Behaviour(error="overloaded"), Behaviour(error="server_error")])
    assert (await translate(translations)).translation.translated_text == "Hallo Welt"
    assert len(openai_fake.requests) == 3


async def test_a_slow_provider_is_a_timeout_that_costs_nothing(
    openai: OpenAI, openai_fake: FakeOpenAI, billing: FakeBilling
) -> None:
    openai_fake.default = Behaviour(fault="hang")
    async with translating(openai, billing, timeout_seconds=0.2) as translations:
        assert (await failure(translations)).reason == "PROVIDER_TIMEOUT"
    assert (len(billing.released), billing.settled) == (1, [])
    await openai_fake.until(lambda: openai_fake.requests[0].closed_early)


async def test_the_placeholder_is_paid_like_a_provider(billing: FakeBilling) -> None:
    async with translating(Placeholder(), billing) as translations:
        paid = await translate(translations)
    assert paid.translation.provider == "placeholder"
    assert paid.charged_nano > 0
    assert billing.settled[0].usage.estimated


# --- identical requests ---


async def test_a_repeated_request_costs_nothing_and_asks_nobody(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    caller = a_caller()
    first = await translations.translate(caller, a_job(target="de"), patience_seconds=None)
    again = await translations.translate(caller, a_job(target="DE"), patience_seconds=None)
    assert again == Paid(first.translation, 0)
    assert len(openai_fake.requests) == len(billing.held) == len(billing.settled) == 1


async def test_users_of_one_workspace_share_and_workspaces_never_do(
    translations: Translations, openai_fake: FakeOpenAI
) -> None:
    alice = a_caller()
    await translations.translate(alice, a_job(), patience_seconds=None)
    colleague = a_caller(alice.workspace_id, user_id="bob")
    assert (await translations.translate(colleague, a_job(), patience_seconds=None)).charged_nano == 0
    assert (await translations.translate(a_caller(), a_job(), patience_seconds=None)).charged_nano > 0
    assert len(openai_fake.requests) == 2


@pytest.mark.parametrize("other", [a_job("Hello world!"), a_job(target="fr"), a_job(source="en"), a_job("hello world")])
async def test_another_text_or_language_is_another_request(
    translations: Translations, openai_fake: FakeOpenAI, other: object
) -> None:
    caller = a_caller()
    await translations.translate(caller, a_job(), patience_seconds=None)
    assert (await translations.translate(caller, other, patience_seconds=None)).charged_nano > 0  # type: ignore[arg-type]
    assert len(openai_fake.requests) == 2


async def test_two_hundred_at_once_are_one_call_and_one_charge(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    caller = a_caller()
    openai_fake.default = translated(first_token_delay_ms=100, output_tokens=10)
    asking = (translations.translate(caller, a_job(), patience_seconds=None) for _ in range(200))
    paid = await asyncio.gather(*asking)
    assert len(openai_fake.requests) == len(billing.held) == len(billing.settled) == 1
    assert sorted(one.charged_nano for one in paid) == [0] * 199 + [110]
    assert len({one.translation for one in paid}) == 1


async def test_workspaces_do_not_share_what_is_under_way_either(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = translated(first_token_delay_ms=100)
    await asyncio.gather(*(translate(translations) for _ in range(5)))
    assert len(openai_fake.requests) == len(billing.settled) == 5


async def test_a_failure_is_told_to_all_and_kept_for_nobody(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    caller = a_caller()
    openai_fake.queue.append(Behaviour(error="invalid_key", first_token_delay_ms=50))
    asking = (translations.translate(caller, a_job(), patience_seconds=None) for _ in range(3))
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [getattr(result, "reason", "") for result in results] == ["PROVIDER_AUTH_FAILED"] * 3
    assert (await translations.translate(caller, a_job(), patience_seconds=None)).charged_nano > 0


async def test_what_is_kept_has_a_lifetime(openai: OpenAI, billing: FakeBilling, openai_fake: FakeOpenAI) -> None:
    caller = a_caller()
    async with translating(openai, billing, ttl_seconds=0.05) as translations:
        await translations.translate(caller, a_job(), patience_seconds=None)
        async with asyncio.timeout(5):
            while not (await translations.translate(caller, a_job(), patience_seconds=None)).charged_nano:
                pass
    assert len(openai_fake.requests) == 2


async def test_what_is_kept_is_bounded_and_the_oldest_goes_first(
    openai: OpenAI, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    caller = a_caller()
    openai_fake.default = translated("x" * 10_000)
    async with translating(openai, billing, size_bytes=50_000) as translations:
        for number in range(6):
            await translations.translate(caller, a_job(f"text {number}"), patience_seconds=None)
        last = await translations.translate(caller, a_job("text 5"), patience_seconds=None)
        first = await translations.translate(caller, a_job("text 0"), patience_seconds=None)
    assert last.charged_nano == 0
    assert first.charged_nano > 0


async def test_a_translation_larger_than_all_that_may_be_kept_is_answered(
    openai: OpenAI, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = translated("x" * 10_000)
    async with translating(openai, billing, size_bytes=5_000) as translations:
        assert len((await translate(translations)).translation.translated_text) == 10_000


# --- who leaves ---


async def test_a_caller_that_leaves_stops_the_provider_and_holds_nothing(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(fault="hang")
    asking = asyncio.create_task(translate(translations))
    await openai_fake.until(lambda: openai_fake.requests)
    asking.cancel()
    await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    await billing.until(lambda: billing.released)
    assert (billing.settled, billing.open_holds) == ([], set())


async def test_a_caller_that_leaves_while_the_hold_is_made_holds_nothing(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    billing.gates = {"HoldCredits": asyncio.Event()}
    asking = asyncio.create_task(translate(translations))
    await billing.until(lambda: billing.calls["HoldCredits"])
    asking.cancel()
    await billing.until(lambda: billing.released)
    assert not openai_fake.requests


async def test_one_who_leaves_takes_nothing_from_the_others(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    caller = a_caller()
    openai_fake.default = translated(first_token_delay_ms=200)
    first = asyncio.create_task(translations.translate(caller, a_job(), patience_seconds=None))
    await openai_fake.until(lambda: openai_fake.requests)
    second = asyncio.create_task(translations.translate(caller, a_job(), patience_seconds=None))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).translation.translated_text == "Hallo Welt"
    assert len(openai_fake.requests) == len(billing.settled) == 1


async def test_an_answer_that_is_there_is_paid_and_kept_though_its_caller_has_left(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    caller = a_caller()
    billing.gates = {"SettleHolds": asyncio.Event()}
    asking = asyncio.create_task(translations.translate(caller, a_job(), patience_seconds=None))
    await billing.until(lambda: billing.calls["SettleHolds"])
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    billing.gates["SettleHolds"].set()
    assert (await translations.translate(caller, a_job(), patience_seconds=None)).charged_nano == 0
    assert (len(openai_fake.requests), billing.open_holds) == (1, set())


async def test_impatience_ends_a_callers_waiting_and_not_that_of_others(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    caller = a_caller()
    openai_fake.default = translated(first_token_delay_ms=300)
    hasty = asyncio.create_task(translations.translate(caller, a_job(), patience_seconds=0.1))
    patient = asyncio.create_task(translations.translate(caller, a_job(), patience_seconds=10))
    with pytest.raises(ProviderTimeout):
        await hasty
    assert (await patient).translation.translated_text == "Hallo Welt"
    assert len(openai_fake.requests) == 1


async def test_impatience_of_the_last_one_stops_the_provider(
    translations: Translations, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(fault="hang")
    with pytest.raises(ProviderTimeout):
        await translations.translate(a_caller(), a_job(), patience_seconds=0.2)
    await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    await billing.until(lambda: billing.released)
