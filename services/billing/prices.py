"""The price list: `prices.yaml`, and the operator's own file over it."""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from services.billing.domain import Price, PriceList, Rates
from services.kit.money import Tier, to_nano

SHIPPED = Path(__file__).parent / "prices.yaml"

# A typing error of a few digits is refused rather than charged.
Credits = Annotated[Decimal, Field(ge=0, le=100_000, decimal_places=9)]
Tokens = Annotated[int, Field(gt=0, le=100_000_000)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class TierIn(_Strict):
    """Credits per million tokens, for prompts of at most `up_to` tokens."""

    up_to: Tokens | None = None
    input: Credits
    output: Credits

    def to_domain(self) -> Tier:
        """In nano-credits."""
        return Tier(self.up_to, to_nano(self.input), to_nano(self.output))


class ModelIn(_Strict):
    """One model; priced by tokens (context, max_output, tiers) or by the minute of audio."""

    model: Name
    context: Tokens | None = None
    max_output: Tokens | None = None
    tiers: tuple[TierIn, ...] = ()
    per_minute: Credits | None = None
    applies_from: date = Field(date.min, alias="from")

    @model_validator(mode="after")
    def _one_kind_of_price(self) -> Self:
        if bool(self.tiers) == (self.per_minute is not None):
            raise ValueError("give tiers or per_minute, and not both")
        if self.tiers and (self.context is None or self.max_output is None):
            raise ValueError("a model with tiers has a context and a max_output")
        if self.per_minute == 0:
            raise ValueError("per_minute must be above 0")
        return self

    @model_validator(mode="after")
    def _tiers_ascend(self) -> Self:
        bounds = [tier.up_to for tier in self.tiers]
        if bounds and bounds[-1] is not None:
            raise ValueError("the last tier has no up_to")
        sizes = [size for size in bounds[:-1] if size is not None]
        if len(sizes) != len(bounds[:-1]) or sizes != sorted(set(sizes)):
            raise ValueError("every tier but the last has an up_to, in ascending order")
        return self


class ProviderIn(_Strict):
    """One provider's models, and where and when their prices were read."""

    provider: Name
    source: str = Field(min_length=1, max_length=500)
    priced_on: date
    models: tuple[ModelIn, ...]

    def to_domain(self) -> list[Price]:
        """Its models as prices."""
        return [
            Price(
                provider=self.provider,
                model=listed.model,
                context_window_tokens=listed.context or 0,
                max_output_tokens=min(listed.max_output or 0, listed.context or 0),
                rates=Rates(tuple(tier.to_domain() for tier in listed.tiers), to_nano(listed.per_minute or Decimal(0))),
                priced_on=self.priced_on,
                source=self.source,
                applies_from=listed.applies_from,
            )
            for listed in self.models
        ]


_FILE = TypeAdapter(tuple[ProviderIn, ...])


def load_prices(own: Path | None = None) -> PriceList:
    """The shipped list; a model that is also in the operator's own file has the price that it has there."""
    shipped = read_prices(SHIPPED)
    if own is None:
        return PriceList(shipped)
    replacing = read_prices(own)
    replaced = {(price.provider, price.model) for price in replacing}
    return PriceList([price for price in shipped if (price.provider, price.model) not in replaced] + replacing)


def read_prices(file: Path) -> list[Price]:
    """The prices of one file; one that can't be used ends the process with a sentence."""
    try:
        providers = _FILE.validate_python(yaml.safe_load(file.read_bytes()))
        return _without_duplicates([price for provider in providers for price in provider.to_domain()])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, ValueError) as error:
        raise SystemExit(f"The price list {file} can't be used: {error}") from error


def _without_duplicates(prices: Sequence[Price]) -> list[Price]:
    seen: set[tuple[str, str, date]] = set()
    for price in prices:
        key = (price.provider, price.model, price.applies_from)
        if key in seen:
            raise ValueError(f"{price.provider} {price.model} is listed twice")
        seen.add(key)
    return list(prices)
