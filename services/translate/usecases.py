"""What translate does: one translation, paid once, given to all who asked for it."""

import asyncio
import hashlib
import sys
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass

import structlog
from cachetools import TTLCache

from services.common.providers.calls import provider_call
from services.common.providers.errors import ProviderBadResponse, ProviderTimeout
from services.common.providers.retries import Retries
from services.kit.callers import Caller
from services.translate.billing import Billing, Hold
from services.translate.domain import Answer, Job, Translation
from services.translate.errors import InsufficientCredits
from services.translate.flights import Flight, Flights
from services.translate.languages import read_tag
from services.translate.providers import CutOff, Provider
from services.translate.providers.wire import input_tokens

log = structlog.get_logger()

Cache = TTLCache[Hashable, Translation]
ENTRY_BYTES = 1_024
"""What an entry of the cache takes beside the text."""


def make_cache(*, size_bytes: int, ttl_seconds: float) -> Cache:
    """Translations, the least recently used ones first to go; bounded by what they take in memory."""
    return TTLCache(size_bytes, ttl_seconds, getsizeof=lambda kept: ENTRY_BYTES + sys.getsizeof(kept.translated_text))


@dataclass(frozen=True, slots=True)
class Paid:
    """A translation and what this call of it took, in nano-credits."""

    translation: Translation
    charged_nano: int


class Translations:
    """The use case, with what it is made of."""

    def __init__(
        self,
        provider: Provider,
        billing: Billing,
        cache: Cache,
        flights: Flights[Paid],
        *,
        timeout_seconds: float,
        retries: Retries,
    ) -> None:
        self._provider, self._billing, self._cache, self._flights = provider, billing, cache, flights
        self._timeout_seconds, self._retries = timeout_seconds, retries

    async def translate(self, caller: Caller, job: Job, *, patience_seconds: float | None) -> Paid:
        """The translation: a kept one or a twin's for nothing, else a new one. Failures cost nothing.

        A call that is cancelled, or whose patience is at its end, leaves the work to those who wait for the same;
        when there is nobody it stops.
        """
        caller.must_spend()
        key = _key(caller, job)
        kept = self._cache.get(key)
        if kept is not None:
            return Paid(kept, 0)
        try:
            async with asyncio.timeout(patience_seconds):
                paid, begun = await self._flights.join(key, lambda flight: self._buy(flight, key, caller, job))
        except TimeoutError:
            raise ProviderTimeout from None
        return paid if begun else Paid(paid.translation, 0)

    async def _buy(self, flight: Flight[Paid], key: Hashable, caller: Caller, job: Job) -> Paid:
        """Hold, ask, settle, keep. Once there is an answer it is paid and kept, whoever has left."""
        async with self._billing.hold(
            caller,
            provider=self._provider.name,
            model=self._provider.model,
            input_tokens=input_tokens(job),
            output_tokens=job.output_tokens,
        ) as hold:
            answer = await self._ask(job, hold)
            flight.keep()
            charged_nano = await hold.settle(answer.usage)
        translation = Translation(
            answer.translated_text, answer.source, job.target, self._provider.name, self._provider.model
        )
        with suppress(ValueError):  # larger than the whole cache
            self._cache[key] = translation
        return Paid(translation, charged_nano)

    async def _ask(self, job: Job, hold: Hold) -> Answer:
        """The answer; one that does not fit the schema is asked for once more."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                try:
                    return await self._retries.run(lambda: self._try(job, hold))
                except ProviderBadResponse as error:
                    log.warning("answer_did_not_fit", provider=self._provider.name, error=type(error).__name__)
                return await self._retries.run(lambda: self._try(job, hold))
        except TimeoutError:
            raise ProviderTimeout from None

    async def _try(self, job: Job, hold: Hold) -> Answer:
        try:
            with provider_call(self._provider.name, self._provider.model, "translate"):
                answer = await self._provider.translate(job, output_tokens=hold.output_tokens)
        except CutOff:
            if hold.is_partial:
                raise InsufficientCredits from None
            raise
        return _checked(job, answer)


def _checked(job: Job, answer: Answer) -> Answer:
    """The answer with its source in canonical form: the caller's, where there is one; a made-up one does not fit."""
    source = job.source or read_tag(answer.source)
    if source is None or not answer.translated_text.strip():
        raise ProviderBadResponse
    return Answer(answer.translated_text, source, answer.usage)


def _key(caller: Caller, job: Job) -> Hashable:
    """What tells a translation apart; of the text a digest, so that an entry's size is that of its translation."""
    return caller.workspace_id, job.source, job.target, hashlib.sha256(job.text.encode()).digest()
