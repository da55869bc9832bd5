"""The rules of money, without a database."""

import math
import random
from datetime import date

import pytest

from services.billing import domain, errors
from services.billing.domain import (
    EntryKind,
    Hold,
    HoldState,
    PriceList,
    Rates,
    Settlement,
    Usage,
    audio_cost,
    terms_of,
)
from services.billing.errors import PriceUnknown
from services.kit.errors import DomainError, InvalidArgument
from services.kit.money import NANO, Tier
from tests.unit.billing.factories import (
    CONTEXT_TOKENS,
    INPUT,
    LEAST,
    OUTPUT,
    TODAY,
    WORST_CASE,
    new_hold_id,
    new_workspace,
    price,
    request,
)

WORKSPACE = new_workspace()


def test_a_hold_wants_the_prompt_and_the_models_longest_answer() -> None:
    terms = terms_of(request(WORKSPACE), price(), ceiling_nano=NANO)
    assert (terms.wanted_nano, terms.least_nano) == (WORST_CASE, LEAST)


def test_a_hold_wants_no_more_than_the_ceiling() -> None:
    terms = terms_of(request(WORKSPACE), price(), ceiling_nano=3_000_000)
    assert (terms.wanted_nano, terms.least_nano) == (3_000_000, LEAST)


def test_a_prompt_that_costs_more_than_the_ceiling_is_held_with_its_least_answer() -> None:
    terms = terms_of(request(WORKSPACE), price(), ceiling_nano=1)
    assert terms.wanted_nano == terms.least_nano == LEAST


def test_an_explicit_limit_is_held_in_full_past_the_ceiling() -> None:
    terms = terms_of(request(WORKSPACE, max_output_tokens=500), price(), ceiling_nano=1)
    assert terms.wanted_nano == terms.least_nano == 1_000 * INPUT + 500 * OUTPUT


def test_an_explicit_limit_above_the_models_is_the_models() -> None:
    terms = terms_of(request(WORKSPACE, max_output_tokens=1_000_000), price(), ceiling_nano=NANO)
    assert terms.wanted_nano == WORST_CASE


def test_a_model_with_short_answers_is_refused_below_its_longest_one() -> None:
    terms = terms_of(request(WORKSPACE), price(max_output_tokens=100), ceiling_nano=NANO)
    assert terms.wanted_nano == terms.least_nano == 1_000 * INPUT + 100 * OUTPUT


def test_the_worst_case_ends_where_the_context_window_does() -> None:
    terms = terms_of(request(WORKSPACE, input_tokens=CONTEXT_TOKENS - 300), price(), ceiling_nano=NANO)
    assert terms.max_output_tokens == 300


@pytest.mark.parametrize("tokens", [-1, CONTEXT_TOKENS, 2**62])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_invalid(tokens: int) -> None:
    with pytest.raises(InvalidArgument):
        terms_of(request(WORKSPACE, input_tokens=tokens), price(), ceiling_nano=NANO)


def test_the_tier_of_the_prompt_prices_all_its_tokens() -> None:
    rates = Rates((Tier(1_000, 1_000_000, 4_000_000), Tier(None, 2_000_000, 6_000_000)))
    assert rates.cost(Usage(1_000, 10)) == 1_000 * 1 + 10 * 4
    assert rates.cost(Usage(1_001, 10)) == 1_001 * 2 + 10 * 6


def test_a_cost_is_rounded_up_once() -> None:
    rates = Rates((Tier(None, 1, 1),))
    assert rates.cost(Usage(1, 1)) == 1
    assert rates.cost(Usage(500_000, 500_001)) == 2


@pytest.mark.parametrize(
    ("seconds", "nano"), [(60.0, 6_000_000), (0.1, 10_000), (0.00001, 1), (61.5, 6_150_000), (1 / 3, 33_334)]
)
def test_audio_is_priced_by_the_minute_and_rounded_up_once(seconds: float, nano: int) -> None:
    assert audio_cost(6_000_000, seconds) == nano


def test_audio_is_held_in_full_or_not_at_all() -> None:
    audio = price(rates=Rates(audio_nano_per_minute=6_000_000))
    terms = terms_of(request(WORKSPACE, kind=EntryKind.SPEECH, seconds=30.0), audio, ceiling_nano=1)
    assert terms.wanted_nano == terms.least_nano == 3_000_000


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_audio_without_a_sensible_length_is_invalid(seconds: float) -> None:
    audio = price(rates=Rates(audio_nano_per_minute=6_000_000))
    with pytest.raises(InvalidArgument):
        terms_of(request(WORKSPACE, kind=EntryKind.SPEECH, seconds=seconds), audio, ceiling_nano=NANO)


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        (EntryKind.SPEECH, price().rates),
        (EntryKind.CHAT, Rates(audio_nano_per_minute=1)),
        (EntryKind.TRANSLATE, Rates()),
    ],
)
def test_a_model_without_a_price_for_this_kind_of_use_is_refused(kind: EntryKind, rates: Rates) -> None:
    with pytest.raises(PriceUnknown):
        terms_of(request(WORKSPACE, kind=kind, seconds=1.0), price(rates=rates), ceiling_nano=NANO)


def test_a_charge_is_never_more_than_was_held() -> None:
    hold = Hold(new_hold_id(), WORKSPACE, HoldState.OPEN, price().rates, amount_nano=5_000)
    assert hold.charge_for(Usage(1, 1)) == INPUT + OUTPUT
    assert hold.charge_for(Usage(1, 2)) == 5_000


def test_what_a_hold_buys_costs_no_more_than_the_hold_and_one_token_more_does() -> None:
    rng = random.Random(20261122)
    for _ in range(500):
        rates = Rates((Tier(None, rng.randrange(10**10), rng.randrange(1, 10**10)),))
        hold = Hold(
            new_hold_id(),
            WORKSPACE,
            HoldState.OPEN,
            rates,
            amount_nano=rng.randrange(10**9),
            input_tokens=rng.randrange(1_000),
            max_output_tokens=2**60,
        )
        if rates.cost(Usage(hold.input_tokens, 0)) > hold.amount_nano:
            assert hold.output_tokens == 0
        else:
            assert rates.cost(Usage(hold.input_tokens, hold.output_tokens)) <= hold.amount_nano
            assert rates.cost(Usage(hold.input_tokens, hold.output_tokens + 1)) > hold.amount_nano


def test_a_providers_nonsense_counts_as_nothing() -> None:
    sane = Usage(input_tokens=-5, output_tokens=2**63 - 1, seconds=math.nan, estimated=True).sane()
    assert sane == Usage(input_tokens=0, output_tokens=domain.MAX_TOKENS, seconds=0.0, estimated=True)


def test_of_two_settlements_of_one_hold_in_a_batch_the_first_counts() -> None:
    hold_id = new_hold_id()
    usages = domain.first_of_each([Settlement(hold_id, Usage(1)), Settlement(hold_id, Usage(2))])
    assert usages == {hold_id: Usage(1)}


def test_a_price_that_is_known_in_advance_applies_from_its_day() -> None:
    prices = PriceList([price(), price(applies_from=date(2027, 1, 1), max_output_tokens=7)])
    assert prices.get("fake", "chat", on=date(2026, 12, 31)).max_output_tokens == 1_000
    assert prices.get("fake", "chat", on=date(2027, 1, 1)).max_output_tokens == 7
    assert [found.max_output_tokens for found in prices.all(on=date(2027, 1, 1))] == [7]


def test_a_model_whose_price_does_not_apply_yet_is_unknown() -> None:
    prices = PriceList([price(applies_from=date(2027, 1, 1))])
    assert prices.all(on=TODAY) == []
    with pytest.raises(PriceUnknown):
        prices.get("fake", "chat", on=TODAY)


def test_every_reason_is_in_the_proto() -> None:
    from backendai.billing.v1.billing_pb2 import BillingReason

    reasons = {f"BILLING_REASON_{error.reason}" for error in vars(errors).values() if _is_own_error(error)}
    assert reasons == set(BillingReason.keys()) - {"BILLING_REASON_UNSPECIFIED"}


def _is_own_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, DomainError) and value.__module__ == errors.__name__
