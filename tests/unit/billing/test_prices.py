"""The price list's file."""

from datetime import date
from pathlib import Path

import pytest

from services.billing.domain import Usage
from services.billing.prices import load_prices
from services.kit.money import NANO
from tests.unit.billing.factories import TODAY

HEADER = "- provider: acme\n  source: https://example.com\n  priced_on: 2026-11-22\n  models:\n"


def written(folder: Path, *models: str, header: str = HEADER) -> Path:
    file = folder / "prices.yaml"
    file.write_text(header + "".join(f"    - {model}\n" for model in models))
    return file


def test_the_shipped_list_has_the_main_models_of_every_provider() -> None:
    prices = load_prices()
    listed = {(price.provider, price.model) for price in prices.all(on=TODAY)}
    assert {provider for provider, _ in listed} == {
        *("openai", "google", "anthropic", "groq", "deepseek", "local", "placeholder")
    }
    assert {("openai", "gpt-4o-mini"), ("google", "gemini-2.5-pro"), ("openai", "whisper-1")} <= listed
    assert ("local", "smollm2-135m-instruct") in listed


def test_the_shipped_prices_are_nano_credits() -> None:
    prices = load_prices()
    mini = prices.get("openai", "gpt-4o-mini", on=TODAY).rates
    assert mini.cost(Usage(1_000_000, 1_000_000)) == int(0.75 * NANO)
    pro = prices.get("google", "gemini-2.5-pro", on=TODAY).rates
    assert pro.cost(Usage(200_000, 1_000)) == 200_000 * 1_250 + 1_000 * 10_000
    assert pro.cost(Usage(200_001, 1_000)) == 200_001 * 2_500 + 1_000 * 15_000
    assert prices.get("openai", "whisper-1", on=TODAY).rates.audio_nano_per_minute == 6_000_000


def test_every_shipped_model_says_what_it_can_and_where_its_price_was_read() -> None:
    for price in load_prices().all(on=TODAY):
        assert price.source
        assert date(2026, 11, 1) <= price.priced_on <= TODAY
        assert price.rates.audio_nano_per_minute or price.context_window_tokens >= price.max_output_tokens > 0


def test_an_introductory_price_ends_on_its_day() -> None:
    prices = load_prices()
    assert prices.get("google", "gemini-4-argon", on=date(2026, 11, 30)).rates.cost(Usage(1_000, 0)) == 2_000_000
    assert prices.get("google", "gemini-4-argon", on=date(2026, 12, 1)).rates.cost(Usage(1_000, 0)) == 4_000_000


def test_the_operators_file_replaces_and_extends_the_list(tmp_path: Path) -> None:
    own = written(
        tmp_path,
        "{model: gpt-4o, context: 10, max_output: 5, tiers: [{input: 1, output: 1}]}",
        "{model: gpt-mine, context: 10, max_output: 5, tiers: [{input: 1, output: 1}]}",
        header=HEADER.replace("acme", "openai"),
    )
    prices = load_prices(own)
    assert prices.get("openai", "gpt-4o", on=TODAY).context_window_tokens == 10
    assert prices.get("openai", "gpt-mine", on=TODAY).source == "https://example.com"
    assert prices.get("openai", "gpt-4o-mini", on=TODAY).context_window_tokens == 128_000


def test_an_operators_price_replaces_later_prices_too(tmp_path: Path) -> None:
    model = "{model: gemini-3.8-flash, context: 10, max_output: 5, tiers: [{input: 1, output: 1}]}"
    own = written(tmp_path, model, header=HEADER.replace("acme", "google"))
    price = load_prices(own).get("google", "gemini-3.8-flash", on=date(2027, 6, 1))
    assert price.rates.cost(Usage(1_000_000, 0)) == NANO


@pytest.mark.parametrize(
    "model",
    [
        "{model: m, context: 10, max_output: 5}",
        "{model: m, per_minute: 0}",
        "{model: m, per_minute: .nan}",
        "{model: m, per_minute: 0.0000000001}",
        "{model: m, per_minute: 1, context: 10, max_output: 5, tiers: [{input: 1, output: 1}]}",
        "{model: m, tiers: [{input: 1, output: 1}]}",
        "{model: m, context: 10, max_output: 5, tiers: [{input: -1, output: 1}]}",
        "{model: m, context: 10, max_output: 5, tiers: [{input: .inf, output: 1}]}",
        "{model: m, context: 0, max_output: 5, tiers: [{input: 1, output: 1}]}",
        "{model: m, context: 10, max_output: 5, tiers: [{up_to: 5, input: 1, output: 1}]}",
        "{model: m, context: 10, max_output: 5, tiers: [{input: 1, output: 1}, {input: 1, output: 1}]}",
        "{model: m, context: 10, max_output: 5, colour: red, tiers: [{input: 1, output: 1}]}",
        "not a model",
        "{model: m, per_minute: 1}\n    - {model: m, per_minute: 2}",
    ],
)
def test_a_file_that_can_not_be_used_ends_the_start_with_a_sentence(tmp_path: Path, model: str) -> None:
    with pytest.raises(SystemExit, match="can't be used"):
        load_prices(written(tmp_path, model))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"- 1", b"x: [1"])
def test_a_file_that_is_no_list_ends_the_start_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "prices.yaml"
    file.write_bytes(content)
    with pytest.raises(SystemExit, match="can't be used"):
        load_prices(file)


def test_a_file_that_is_missing_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="can't be used"):
        load_prices(tmp_path / "nowhere.yaml")
