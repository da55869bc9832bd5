"""What speech does: one transcription, paid by its length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from services.common.providers.calls import provider_call
from services.common.providers.errors import ProviderTimeout
from services.common.providers.retries import Retries
from services.kit.callers import Caller
from services.kit.errors import Unavailable
from services.kit.spool import Spool
from services.speech.answers import Answers
from services.speech.billing import Billing, Hold
from services.speech.domain import MAX_BYTES, Job, Paid, Transcript
from services.speech.errors import AudioEmpty, AudioTooLarge, AudioTypeUnsupported, ProviderNotConfigured
from services.speech.formats import find_format
from services.speech.measure import Decoders
from services.speech.providers import Provider, Recording

log = structlog.get_logger()

# Of a caller's patience this much is kept for the settlement.
SETTLE_SECONDS = 2.0


class Transcriptions:
    """The use case, with what it is made of."""

    def __init__(
        self,
        provider: Provider | None,
        billing: Billing,
        decoders: Decoders,
        answers: Answers,
        *,
        limit: int,
        timeout_seconds: float,
        retries: Retries,
    ) -> None:
        self._provider, self._billing, self._decoders, self._answers = provider, billing, decoders, answers
        self._limit, self._timeout_seconds, self._retries = limit, timeout_seconds, retries
        self._running = 0
        self._finishing: set[asyncio.Task[Paid]] = set()

    async def transcribe(
        self, caller: Caller, job: Job, chunks: AsyncIterator[bytes], *, patience_seconds: float | None
    ) -> Paid:
        """The transcript of the file that comes in chunks, paid. Failures cost nothing.

        A call that is cancelled before there is a transcript stops the provider and leaves nothing: no file, no hold,
        no charge. From then on it is paid, and kept for a job that may come again.
        """
        caller.must_spend()
        provider = self._provider
        if provider is None:
            raise ProviderNotConfigured
        provider.bounds.check_language(job.language)
        if kept := self._answers.find(job):
            return kept
        give_up_at = _now() + (self._timeout_seconds if patience_seconds is None else patience_seconds) - SETTLE_SECONDS
        with self._place(), Spool() as spool:
            recording = await _record(spool, chunks, job)
            async with self._answers.turn(job):
                if kept := self._answers.find(job):
                    return kept
                return await self._buy(provider, caller, job, recording, give_up_at)

    async def _buy(self, provider: Provider, caller: Caller, job: Job, recording: Recording, give_up_at: float) -> Paid:
        """Measure, hold, ask, settle."""
        most = provider.bounds.max_seconds
        seconds = await self._decoders.measure(recording.spool, recording.format, max_seconds=most)
        provider.bounds.check_length(seconds)
        async with self._billing.hold(
            caller, job, provider=provider.name, model=provider.model, seconds=seconds
        ) as hold:
            transcript = await self._ask(provider, recording, give_up_at)
            return await self._to_the_end(self._pay(hold, job, transcript, seconds))

    async def _ask(self, provider: Provider, recording: Recording, give_up_at: float) -> Transcript:
        try:
            async with asyncio.timeout_at(min(_now() + self._timeout_seconds, give_up_at)):
                return await self._retries.run(lambda: _transcribe(provider, recording))
        except TimeoutError:
            raise ProviderTimeout from None

    async def _pay(self, hold: Hold, job: Job, transcript: Transcript, seconds: float) -> Paid:
        paid = Paid(transcript, seconds, await hold.settle())
        self._answers.keep(job, paid)
        return paid

    async def _to_the_end(self, work: Coroutine[Any, Any, Paid]) -> Paid:
        """Its result; it comes to its end also when its caller leaves."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Paid]) -> None:
        self._finishing.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, also when its caller has left

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._running >= self._limit:
            raise Unavailable("Too many transcriptions are under way. Try again.")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def close(self) -> None:
        """Wait for what is still being paid."""
        if self._finishing:
            await asyncio.wait(self._finishing)


async def _transcribe(provider: Provider, recording: Recording) -> Transcript:
    with provider_call(provider.name, provider.model, "transcribe"):
        return await provider.transcribe(recording)


async def _record(spool: Spool, chunks: AsyncIterator[bytes], job: Job) -> Recording:
    """Write the file down. AudioTooLarge as soon as it is, AudioEmpty, AudioTypeUnsupported."""
    async for chunk in chunks:
        if spool.size + len(chunk) > MAX_BYTES:
            raise AudioTooLarge
        await _write(spool, chunk)
    await _write(spool, b"", flush=True)
    if not spool.size:
        raise AudioEmpty
    format = find_format(spool.reader())
    if format is None:
        raise AudioTypeUnsupported
    return Recording(spool, format, job.language)


async def _write(spool: Spool, chunk: bytes, *, flush: bool = False) -> None:
    try:
        await spool.write(chunk)
        if flush:
            await spool.flush()
    except OSError as error:
        log.error("spool_failed", errno=error.errno)
        raise Unavailable from error


def _now() -> float:
    return asyncio.get_running_loop().time()
