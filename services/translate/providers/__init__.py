"""Providers behind one protocol: a job goes in, a whole answer comes out."""

from typing import Protocol

from services.common.providers.errors import ProviderBadResponse
from services.translate.domain import Answer, Job


class CutOff(ProviderBadResponse):
    """The answer reached the output limit before its end."""

    detail = "The provider's answer was longer than it may be."


class Provider(Protocol):
    """A vendor's API. Tries each call once; its SDK's retries are off."""

    name: str
    model: str

    async def translate(self, job: Job, *, output_tokens: int) -> Answer:
        """The model's answer in the schema's shape.

        Raises ProviderErrors: ProviderBadResponse for another shape, CutOff for an answer longer than
        `output_tokens`. Cancelling closes the connection, which stops the provider.
        """
        ...

    async def close(self) -> None:
        """Hang up."""
        ...
