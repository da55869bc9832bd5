"""Money as integers: nano-credits, 1 credit = 1,000,000,000 of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

NANO = 1_000_000_000
PER_MILLION = 1_000_000


def to_credits(nano: int) -> str:
    """Credits as a plain decimal string with nine places at most, as the REST API shows money: 12.450000001, 0.5, 0."""
    sign, nano = ("-" if nano < 0 else ""), abs(nano)
    whole, fraction = divmod(nano, NANO)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def to_nano(credits: Decimal) -> int:
    """Nano-credits; ValueError for more than nine decimal places."""
    nano = credits * NANO
    if nano != nano.to_integral_value():
        raise ValueError("credits have at most nine decimal places")
    return int(nano)


@dataclass(frozen=True, slots=True)
class Tier:
    """Nano-credits per million tokens up to a prompt of `up_to_input_tokens` (None: any size)."""

    up_to_input_tokens: int | None
    input_nano_per_million: int
    output_nano_per_million: int


def tier_for(tiers: Sequence[Tier], input_tokens: int) -> Tier:
    """The first tier that the prompt fits in; the last one when it fits in none."""
    for tier in tiers:
        if tier.up_to_input_tokens is None or input_tokens <= tier.up_to_input_tokens:
            return tier
    return tiers[-1]


def token_cost(tiers: Sequence[Tier], *, input_tokens: int, output_tokens: int) -> int:
    """Nano-credits of one call, rounded up once."""
    tier = tier_for(tiers, input_tokens)
    total = input_tokens * tier.input_nano_per_million + output_tokens * tier.output_nano_per_million
    return -(-total // PER_MILLION)


def output_tokens_for(tiers: Sequence[Tier], *, input_tokens: int, nano: int) -> int:
    """How many output tokens `nano` buys after the input; below 0 when it does not even buy the input."""
    tier = tier_for(tiers, input_tokens)
    rest = nano * PER_MILLION - input_tokens * tier.input_nano_per_million
    if rest < 0:
        return -1
    return rest // tier.output_nano_per_million if tier.output_nano_per_million else 2**53
