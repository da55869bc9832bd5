"""One transcription, paid by its length: once, or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import uuid4

import pytest

from services.billing.domain import HoldId as BillingHoldId
from services.common.providers.errors import ProviderTimeout, ProviderUnavailable
from services.kit.callers import Caller, Role
from services.kit.errors import DomainError, NotFound, PermissionDenied, Unavailable
from services.kit.spool import Spool
from services.speech import usecases
from services.speech.domain import MAX_BYTES, MAX_HOLDS, Bounds, Transcript
from services.speech.errors import (
    AudioEmpty,
    AudioTooLarge,
    AudioTooLong,
    AudioTooShort,
    AudioTypeUnsupported,
    AudioUndecodable,
    LanguageUnsupported,
    ProviderNotConfigured,
    TooManyTries,
)
from services.speech.providers.openai import OpenAI
from services.speech.usecases import Transcriptions
from tests.audio import bomb, tone
from tests.fakes.provider import Behaviour
from tests.fakes.whisper import FakeWhisper
from tests.unit.speech.conftest import (
    KEY,
    NANO_PER_SECOND,
    Account,
    RunningBilling,
    a_job,
    in_chunks,
    openai_at,
    transcribe,
    transcribing,
)
from tests.unit.speech.test_process import settings_for

NOTHING = (0, 0)


async def test_a_transcription_is_paid_by_the_second(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper
) -> None:
    paid = await transcribe(transcriptions, account.alice, tone("flac", 7.3, rate=16_000))
    assert paid.transcript == Transcript("Good morning.", "en")
    assert (paid.seconds, paid.charged_nano) == (7.3, 7.3 * NANO_PER_SECOND)
    assert await account.spent_and_held() == (paid.charged_nano, 0)
    (charge,) = await account.charges()
    assert (charge.user_id, charge.provider, charge.model) == ("alice", "openai", "whisper-1")
    assert charge.usage is not None
    assert charge.usage.seconds == 7.3
    assert len(whisper.requests) == 1


async def test_while_the_provider_works_the_price_is_held(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper
) -> None:
    whisper.queue.append(Behaviour(fault="hang"))
    task = asyncio.create_task(transcribe(transcriptions, account.alice))
    await whisper.until(lambda: whisper.requests)
    assert await account.spent_and_held() == (0, NANO_PER_SECOND)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_caller_that_leaves_pays_nothing_and_stops_the_provider(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool()
    monkeypatch.setattr(usecases, "Spool", lambda: spool)
    whisper.queue.append(Behaviour(fault="hang"))
    task = asyncio.create_task(transcribe(transcriptions, account.alice))
    await whisper.until(lambda: whisper.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await account.spent_and_held() == NOTHING
    await whisper.until(lambda: whisper.requests[0].closed_early)
    with pytest.raises(ValueError, match="closed"):
        spool.fileno()


async def test_a_caller_that_leaves_after_the_transcript_has_paid_and_finds_it(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, settling = a_job(may_repeat=True), asyncio.Event()
    pay = transcriptions._pay

    async def slowly(*arguments: object) -> object:
        settling.set()
        return await pay(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(transcriptions, "_pay", slowly)
    task = asyncio.create_task(transcribe(transcriptions, account.alice, job=job))
    await settling.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await transcriptions.close()
    assert await account.spent_and_held() == (NANO_PER_SECOND, 0)
    assert (await transcribe(transcriptions, account.alice, job=job)).transcript.text == "Good morning."
    assert len(whisper.requests) == 1


@pytest.mark.parametrize(
    ("file", "error"),
    [
        (b"", AudioEmpty),
        (b"This is text.", AudioTypeUnsupported),
        (b"\x7fELF\x02\x01\x01" + bytes(100), AudioTypeUnsupported),
        (tone("mp3", 2.0)[:-200], AudioUndecodable),
        (tone("wav", 0.05), AudioTooShort),
        (bomb(), AudioTooLong),
        (bytes(MAX_BYTES + 1), AudioTooLarge),
    ],
    ids=["empty", "text", "elf", "cut off", "short", "bomb", "large"],
)
async def test_a_bad_file_asks_nobody_and_holds_nothing(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper, file: bytes, error: type[DomainError]
) -> None:
    with pytest.raises(error):
        await transcribe(transcriptions, account.alice, file)
    assert not whisper.requests
    assert await account.spent_and_held() == NOTHING


async def test_a_large_file_is_refused_while_it_comes(transcriptions: Transcriptions, account: Account) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 2**20
            yield bytes(2**20)

    with pytest.raises(AudioTooLarge):
        await transcriptions.transcribe(account.alice, a_job(), endless(), patience_seconds=60)
    assert taken == MAX_BYTES + 2**20


async def test_without_credit_nobody_is_asked(
    transcriptions: Transcriptions, running_billing: RunningBilling, whisper: FakeWhisper
) -> None:
    account = await running_billing.account(NANO_PER_SECOND - 1)
    with pytest.raises(DomainError) as refused:
        await transcribe(transcriptions, account.alice)
    assert refused.value.reason == "INSUFFICIENT_CREDITS"
    assert not whisper.requests


async def test_credit_for_ten_serves_ten_of_thirty(
    transcriptions: Transcriptions, running_billing: RunningBilling
) -> None:
    account = await running_billing.account(10 * NANO_PER_SECOND)
    tries = (transcribe(transcriptions, account.alice) for _ in range(30))
    ended = await asyncio.gather(*tries, return_exceptions=True)
    refused = [one for one in ended if isinstance(one, DomainError) and one.reason == "INSUFFICIENT_CREDITS"]
    assert (len(refused), len(await account.charges())) == (20, 10)
    assert (await account.service.get_credits(account._admin)).available_nano == 0


@pytest.mark.parametrize("role", [Role.GUEST, Role.VIEWER])
async def test_who_may_not_spend_is_refused_before_anything_is_read(
    transcriptions: Transcriptions, account: Account, role: Role
) -> None:
    read = False

    async def unread() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b""

    caller = Caller("alice", account.workspace_id, role)
    with pytest.raises(NotFound if role is Role.GUEST else PermissionDenied):
        await transcriptions.transcribe(caller, a_job(), unread(), patience_seconds=60)
    assert not read


async def test_without_a_provider_nothing_is_done(running_billing: RunningBilling, account: Account) -> None:
    async with transcribing(None, running_billing) as transcriptions:
        with pytest.raises(ProviderNotConfigured):
            await transcribe(transcriptions, account.alice)


async def test_a_provider_says_what_it_takes(
    running_billing: RunningBilling, account: Account, whisper: FakeWhisper
) -> None:
    bounds = Bounds(max_seconds=2, languages=frozenset({"en"}))
    async with openai_at(whisper.url, bounds=bounds) as provider, transcribing(provider, running_billing) as speech:
        await transcribe(speech, account.alice, tone("wav", 2.0), a_job(language="en"))
        with pytest.raises(LanguageUnsupported):
            await transcribe(speech, account.alice, tone("wav", 1.0), a_job(language="fr"))
        with pytest.raises(AudioTooLong) as refused:
            await transcribe(speech, account.alice, tone("wav", 2.1))
    assert refused.value.metadata == {"max_seconds": "2"}


async def test_the_bound_of_a_model_is_asked_before_anything_is_held_or_sent(
    whisper: FakeWhisper, running_billing: RunningBilling, account: Account
) -> None:
    settings = settings_for(openai_api_key=KEY, speech_model="gpt-4o-transcribe")
    async with (
        openai_at(whisper.url, model="gpt-4o-transcribe", bounds=settings.bounds_of("openai")) as provider,
        transcribing(provider, running_billing) as speech,
    ):
        with pytest.raises(AudioTooLong, match="1400 seconds") as refused:
            await transcribe(speech, account.alice, bomb())
    assert refused.value.metadata == {"max_seconds": "1400"}
    assert not whisper.requests
    assert await account.spent_and_held() == NOTHING


# --- the provider fails ---


async def test_a_failure_of_the_provider_costs_nothing(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper
) -> None:
    whisper.default = Behaviour(error="overloaded")
    with pytest.raises(ProviderUnavailable):
        await transcribe(transcriptions, account.alice)
    assert len(whisper.requests) == 3
    assert await account.spent_and_held() == NOTHING


async def test_a_failure_that_passes_is_tried_again_with_the_whole_file(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper
) -> None:
    whisper.queue.extend([Behaviour(error="server_error"), Behaviour(fault="hang_up")])
    paid = await transcribe(transcriptions, account.alice)
    assert paid.charged_nano == NANO_PER_SECOND
    files = [request.json["file"]["sha256"] for request in whisper.requests]
    assert len(files) == 3
    assert len(set(files)) == 1


async def test_a_slow_provider_is_left_in_time(
    provider: OpenAI, running_billing: RunningBilling, account: Account, whisper: FakeWhisper
) -> None:
    whisper.default = Behaviour(fault="hang")
    async with transcribing(provider, running_billing, timeout_seconds=0.2) as transcriptions:
        with pytest.raises(ProviderTimeout):
            await transcribe(transcriptions, account.alice)
    assert await account.spent_and_held() == NOTHING
    assert len(whisper.requests) == 1


async def test_the_provider_gets_no_more_time_than_the_caller_has(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper
) -> None:
    whisper.default = Behaviour(fault="hang")
    began, patience = time.monotonic(), usecases.SETTLE_SECONDS + 2.0
    with pytest.raises(ProviderTimeout):
        await transcriptions.transcribe(account.alice, a_job(), in_chunks(tone("wav")), patience_seconds=patience)
    assert time.monotonic() - began < 10
    assert await account.spent_and_held() == NOTHING


# --- billing fails ---


async def test_without_billing_nobody_is_asked(
    transcriptions: Transcriptions, running_billing: RunningBilling, account: Account, whisper: FakeWhisper
) -> None:
    await running_billing.server.drain(0)
    with pytest.raises(Unavailable):
        await transcribe(transcriptions, account.alice)
    assert not whisper.requests


async def test_no_answer_without_a_settlement(
    transcriptions: Transcriptions,
    running_billing: RunningBilling,
    account: Account,
    whisper: FakeWhisper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.speech.billing.SETTLE_WAITS_SECONDS", (0.01,))
    whisper.queue.append(Behaviour(first_token_delay_ms=500))
    task = asyncio.create_task(transcribe(transcriptions, account.alice))
    await whisper.until(lambda: whisper.requests)
    await running_billing.server.drain(0)
    with pytest.raises(Unavailable):
        await task
    assert await account.spent_and_held() == (0, NANO_PER_SECOND)


async def test_a_hold_that_nobody_ends_gives_itself_back(
    transcriptions: Transcriptions,
    running_billing: RunningBilling,
    account: Account,
    provider: OpenAI,
    whisper: FakeWhisper,
) -> None:
    whisper.default = Behaviour(fault="hang")
    async with transcribing(provider, running_billing, clock=lambda: time.time() - 120) as crashing:
        task = asyncio.create_task(transcribe(crashing, account.alice))
        await whisper.until(lambda: whisper.requests)
        assert await running_billing.service.release_expired() == 1
        assert await account.spent_and_held() == NOTHING
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_an_answer_whose_hold_has_expired_is_paid_from_the_next_one(
    running_billing: RunningBilling, account: Account, provider: OpenAI, whisper: FakeWhisper
) -> None:
    whisper.queue.append(Behaviour("Late.", first_token_delay_ms=500))
    async with transcribing(provider, running_billing, clock=lambda: time.time() - 120) as transcriptions:
        task = asyncio.create_task(transcribe(transcriptions, account.alice))
        await whisper.until(lambda: whisper.requests)
        await running_billing.service.release_expired()
        assert (await task).charged_nano == NANO_PER_SECOND
    assert await account.spent_and_held() == (NANO_PER_SECOND, 0)


# --- the request comes again ---


async def test_a_request_that_comes_again_gets_the_same_answer_for_nothing(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper
) -> None:
    job = a_job(may_repeat=True)
    first = await transcribe(transcriptions, account.alice, job=job)
    whisper.default = Behaviour("Something else.")
    assert await transcribe(transcriptions, account.alice, job=job) == first
    assert len(whisper.requests) == 1
    assert len(await account.charges()) == 1


async def test_twins_at_once_are_one(transcriptions: Transcriptions, account: Account, whisper: FakeWhisper) -> None:
    job = a_job(may_repeat=True)
    paid = await asyncio.gather(*(transcribe(transcriptions, account.alice, job=job) for _ in range(5)))
    assert len(set(paid)) == 1
    assert len(whisper.requests) == 1
    assert await account.spent_and_held() == (NANO_PER_SECOND, 0)


async def test_twins_in_two_processes_are_charged_once(
    transcriptions: Transcriptions, running_billing: RunningBilling, account: Account, provider: OpenAI
) -> None:
    job = a_job(may_repeat=True)
    async with transcribing(provider, running_billing) as other:
        paid = await asyncio.gather(*(transcribe(one, account.alice, job=job) for one in (transcriptions, other)))
    assert [one.charged_nano for one in paid] == [NANO_PER_SECOND] * 2
    assert await account.spent_and_held() == (NANO_PER_SECOND, 0)


async def test_a_repetition_after_a_restart_is_charged_once(
    transcriptions: Transcriptions, running_billing: RunningBilling, account: Account, provider: OpenAI
) -> None:
    job = a_job(may_repeat=True)
    await transcribe(transcriptions, account.alice, job=job)
    async with transcribing(provider, running_billing) as restarted:
        assert (await transcribe(restarted, account.alice, job=job)).charged_nano == NANO_PER_SECOND
    assert await account.spent_and_held() == (NANO_PER_SECOND, 0)


async def test_a_request_that_failed_may_come_again(
    transcriptions: Transcriptions, account: Account, whisper: FakeWhisper
) -> None:
    job = a_job(may_repeat=True)
    whisper.queue.append(Behaviour(error="invalid_key"))
    with pytest.raises(DomainError):
        await transcribe(transcriptions, account.alice, job=job)
    assert (await transcribe(transcriptions, account.alice, job=job)).charged_nano == NANO_PER_SECOND
    assert await account.spent_and_held() == (NANO_PER_SECOND, 0)


async def test_a_twin_that_gives_up_does_not_make_the_other_one_free(
    transcriptions: Transcriptions, running_billing: RunningBilling, account: Account, whisper: FakeWhisper
) -> None:
    job = a_job(may_repeat=True)
    whisper.queue.append(Behaviour(first_token_delay_ms=500))
    task = asyncio.create_task(transcribe(transcriptions, account.alice, job=job))
    await whisper.until(lambda: whisper.requests)
    await running_billing.service.release_holds([BillingHoldId(job.hold_id)])
    assert (await task).charged_nano == NANO_PER_SECOND
    assert await account.spent_and_held() == (NANO_PER_SECOND, 0)


async def test_a_request_is_not_begun_without_end(
    transcriptions: Transcriptions, running_billing: RunningBilling, account: Account
) -> None:
    job = a_job(may_repeat=True)
    await running_billing.service.release_holds([BillingHoldId(job.numbered_hold(n)) for n in range(MAX_HOLDS)])
    with pytest.raises(TooManyTries):
        await transcribe(transcriptions, account.alice, job=job)


async def test_only_what_may_come_again_is_kept_and_only_what_fits(
    running_billing: RunningBilling, account: Account, provider: OpenAI, whisper: FakeWhisper
) -> None:
    async with transcribing(provider, running_billing, size_bytes=4_000) as transcriptions:
        await transcribe(transcriptions, account.alice, job=a_job())
        assert not transcriptions._answers._kept
        whisper.queue.append(Behaviour("word " * 1_000))
        await transcribe(transcriptions, account.alice, job=a_job(may_repeat=True))
        assert not transcriptions._answers._kept
        assert not transcriptions._answers._turns


async def test_more_than_the_process_takes_is_refused(
    provider: OpenAI, running_billing: RunningBilling, account: Account, whisper: FakeWhisper
) -> None:
    whisper.queue.append(Behaviour(first_token_delay_ms=500))
    async with transcribing(provider, running_billing, limit=1) as transcriptions:
        task = asyncio.create_task(transcribe(transcriptions, account.alice))
        await whisper.until(lambda: whisper.requests)
        with pytest.raises(Unavailable):
            await transcribe(transcriptions, account.alice)
        await task
        await transcribe(transcriptions, account.alice)


async def test_another_workspace_hold_is_not_paid_from(
    transcriptions: Transcriptions, running_billing: RunningBilling, account: Account
) -> None:
    other, job = await running_billing.account(), a_job(uuid4(), may_repeat=True)
    await transcribe(transcriptions, account.alice, job=job)
    async with transcribing(transcriptions._provider, running_billing) as elsewhere:
        with pytest.raises(DomainError):
            await transcribe(elsewhere, other.alice, job=job)
    assert await other.spent_and_held() == NOTHING
