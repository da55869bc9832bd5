"""What the billing service is told."""

from decimal import Decimal
from pathlib import Path

from pydantic import Field

from services.kit.postgres.settings import DatabaseSettings


class Settings(DatabaseSettings):
    """Read from the environment once, in `__main__`."""

    billing_listen: str = Field("127.0.0.1:50052", description="The address the gRPC server binds, host:port.")
    billing_database_pool: int = Field(10, ge=2, le=200, description="Connections to Postgres a process, at most.")
    billing_signup_credits: Decimal = Field(
        Decimal(0),
        ge=0,
        le=1_000_000_000,
        decimal_places=9,
        description="Credits of a workspace when it is first seen.",
    )
    billing_prices_file: Path | None = Field(
        None, description="A file like prices.yaml; its models replace or extend the shipped ones."
    )
    billing_hold_ceiling: Decimal = Field(
        Decimal("0.5"), gt=0, le=1_000_000_000, decimal_places=9, description="The most a turn sets aside, in credits."
    )
