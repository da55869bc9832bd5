"""When a provider's call is tried again. The SDKs' own retries are off: this is the only layer that retries."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import structlog

from services.common.providers.errors import ProviderError

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is tried, and how long it waits in between."""

    tries: int = 3
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 20.0
    """A provider that asks for a longer wait is not asked again."""

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result. Raises the ProviderError of the last try."""
        for jitter_seconds in self._waits():
            try:
                return await call()
            except ProviderError as error:
                asked_seconds = error.retry_after_seconds or 0.0
                if not error.retryable or asked_seconds > self.longest_wait_seconds:
                    raise
                log.info("provider_retry", code=error.outcome)
            await asyncio.sleep(asked_seconds + jitter_seconds)
        return await call()

    def _waits(self) -> Iterator[float]:
        """Seconds before each further try, jittered and growing."""
        for tries in range(self.tries - 1):
            longest = min(self.longest_wait_seconds, self.first_wait_seconds * 2 ** (tries + 1))
            yield random.uniform(longest / 2, longest)
