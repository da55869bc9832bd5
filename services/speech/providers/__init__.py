"""Providers behind one protocol: a recording goes in, a whole transcript comes out."""

from dataclasses import dataclass
from typing import Protocol

from services.kit.spool import Spool
from services.speech.domain import Bounds, Transcript
from services.speech.formats import Format


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that has been decoded once, so that a provider will not choke on it. A language is a code, or ""."""

    spool: Spool
    format: Format
    language: str


class Provider(Protocol):
    """A vendor's API. Tries each call once; its SDK's retries are off."""

    name: str
    model: str
    bounds: Bounds

    async def transcribe(self, recording: Recording) -> Transcript:
        """What the provider hears. The file goes out as it is read, never whole in memory.

        Raises ProviderErrors, and this service's own for a recording that the provider refuses for its language or
        its sound. Cancelling closes the connection, which stops the provider.
        """
        ...

    async def close(self) -> None:
        """Hang up."""
        ...
