"""Transcriptions through REST: real files, real processes, the ledger; who leaves, what dies, what is too much."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deploy.local.recogniser import Recogniser
from tests.audio import SPOKEN, amr_in_3gp, bomb, tone, wav_of_size
from tests.integration.stack import Process, Stack, User
from tests.integration.test_paid_answer import quiet_credits
from tests.integration.waiting import until
from tests.odd_audio import CUT, SECONDS, WHOLE
from tests.servers import Postgres

PATH = "/api/transcribe-audio/"
PER_SECOND = Decimal("0.006") / 60
MIB = 2**20
LIMIT = 25 * MIB


async def transcribe(user: User, file: bytes | None = None, *, key: str = "", **fields: str) -> httpx.Response:
    """A second of sound, unless told otherwise."""
    return await user.post(
        PATH,
        files={"audio_file": ("recording", tone("mp3") if file is None else file)},
        data={"workspace_id": user.workspace, **fields},
        headers={"Idempotency-Key": key} if key else {},
    )


async def spent(user: User) -> Decimal:
    """Credits that are gone once nothing is held any more."""
    return Decimal(10) - Decimal((await quiet_credits(user))["balance"])


async def ledger(user: User) -> list[dict[str, Any]]:
    """The workspace's charges for speech, newest first."""
    listed = (await user.get(f"/api/workspaces/{user.workspace}/credits/usage/")).json()["results"]
    return [entry for entry in listed if entry["kind"] == "speech"]


def heard(stack: Stack, file: bytes) -> list[dict[str, Any]]:
    """The forms in which Whisper was sent this file."""
    digest = hashlib.sha256(file).hexdigest()
    forms: list[Any] = [request["body"] for request in stack.requests("whisper")]
    return [form for form in forms if form and form["file"]["sha256"] == digest]


def charge(seconds: float) -> Decimal:
    """whisper-1's list price, rounded up to a nano-credit."""
    return (Decimal(str(seconds)) * PER_SECOND).quantize(Decimal("1e-9"), rounding="ROUND_UP")


@pytest.fixture
async def alice(stack: Stack) -> AsyncIterator[User]:
    """Ten credits."""
    async with stack.user() as alice:
        await alice.credits()
        yield alice


@pytest.mark.parametrize("extension", ["mp3", "ogg", "webm"])
async def test_five_minutes_are_sent_as_documented_and_paid_to_the_nano(
    stack: Stack, alice: User, extension: str
) -> None:
    stack.script("whisper", next=[{"text": "All of it."}])
    file = tone(extension, 300.0)
    response = await transcribe(alice, file)
    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {"text", "language", "duration_seconds", "credits_charged"}
    assert (body["text"], body["language"]) == ("All of it.", "en")
    assert body["duration_seconds"] == pytest.approx(300.0, abs=0.2)
    assert Decimal(body["credits_charged"]) == charge(body["duration_seconds"])
    [form] = heard(stack, file)
    media_type = {"mp3": "audio/mpeg", "ogg": "audio/ogg", "webm": "audio/webm"}[extension]
    assert form == {
        "model": "whisper-1",
        "response_format": "verbose_json",
        "file": {
            "filename": f"audio.{extension}",
            "content_type": media_type,
            "size": len(file),
            "sha256": hashlib.sha256(file).hexdigest(),
        },
    }
    assert await spent(alice) == Decimal(body["credits_charged"])
    [entry] = await ledger(alice)
    assert (entry["provider"], entry["model"], entry["user_id"]) == ("openai", "whisper-1", "alice")
    assert (entry["seconds"], Decimal(entry["amount"])) == (body["duration_seconds"], -Decimal(body["credits_charged"]))


@pytest.mark.parametrize(
    "name",
    [
        "wav with the file's size",
        "wav with an odd LIST",
        "mp3 behind junk",
        "m4a behind a tag",
        "m4a with zeros behind",
    ],
)
async def test_a_file_as_programs_write_it_is_sent_unchanged_and_paid(stack: Stack, alice: User, name: str) -> None:
    file, _ = WHOLE[name]
    response = await transcribe(alice, file)
    assert response.status_code == 200, response.text
    assert response.json()["duration_seconds"] == pytest.approx(SECONDS, abs=0.12)
    assert len(heard(stack, file)) == 1


@pytest.mark.parametrize(
    ("file", "fields", "status", "code"),
    [
        (b"", {}, 422, "audio_empty"),
        (b"This is text.\n" * 100, {}, 415, "audio_type_unsupported"),
        (b"\x7fELF\x02\x01\x01" + bytes(1_000), {}, 415, "audio_type_unsupported"),
        (tone("mp3", 5.0)[:20_000], {}, 422, "audio_undecodable"),
        (tone("m4a", 5.0)[:-999], {}, 422, "audio_undecodable"),
        (CUT["mp3 that counts its frames behind junk"], {}, 422, "audio_undecodable"),
        (CUT["wav with an odd LIST"], {}, 422, "audio_undecodable"),
        (amr_in_3gp(), {}, 422, "audio_undecodable"),
        (bomb(), {}, 422, "audio_too_long"),
        (tone("wav", 0.05), {}, 422, "audio_too_short"),
        (tone("mp3"), {"language": "xx"}, 422, "language_unknown"),
        (tone("mp3"), {"language": "english"}, 422, "language_unknown"),
        (tone("mp3"), {"user_id": "bob"}, 422, "validation_error"),
        (tone("mp3"), {"workspace_id": "0197a1b2-0000-7000-8000-000000000001"}, 404, "not_found"),
        (wav_of_size(LIMIT + 1), {}, 413, "payload_too_large"),
    ],
    ids=[
        "empty",
        "text",
        "elf",
        "cut",
        "cut m4a",
        "cut junk",
        "cut LIST",
        "amr",
        "bomb",
        "short",
        "xx",
        "name",
        "field",
        "workspace",
        "25 MiB + 1",
    ],
)
async def test_bad_input_is_told_and_nothing_is_held(
    alice: User, file: bytes, fields: dict[str, str], status: int, code: str
) -> None:
    response = await transcribe(alice, file, **fields)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert await alice.credits() == {"balance": "10", "held": "0", "available": "10"}


async def test_exactly_25_mib_pass(alice: User) -> None:
    response = await transcribe(alice, wav_of_size(LIMIT))
    assert response.status_code == 200, response.text


async def test_roles_and_credit_are_asked_before_the_provider(stack: Stack) -> None:
    file = tone("mp3", 1.7)
    async with stack.user(role="viewer") as viewer, stack.user(role=None) as guest:
        assert (await transcribe(viewer, file)).status_code == 403
        assert (await transcribe(guest, file)).status_code == 404
    async with stack.user() as spender:
        await spender.credits()
        response = await transcribe(spender, file)
        assert response.status_code == 200
    assert len(heard(stack, file)) == 1


# --- a key ---


async def test_a_request_that_comes_again_is_answered_alike_and_paid_once(single: Stack) -> None:
    async with single.user() as alice:
        await alice.credits()
        single.script("whisper", next=[{"text": "Once."}])
        file = tone("mp3", 2.3)
        first = await transcribe(alice, file, key="k-1")
        again = await transcribe(alice, file, key="k-1")
        assert first.status_code == again.status_code == 200
        assert first.json() == again.json()
        assert await spent(alice) == Decimal(first.json()["credits_charged"])
        assert len(heard(single, file)) == 1
        other = await transcribe(alice, tone("mp3", 2.4), key="k-1")
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        language = await transcribe(alice, file, key="k-1", language="de")
        assert (language.status_code, language.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(("sent", "text"), [("Hi \ud83d", "Hi \ufffd"), ("a\0b", "a\ufffdb")])
async def test_text_that_can_not_be_sent_on_is_replaced_before_it_is_paid(single: Stack, sent: str, text: str) -> None:
    async with single.user() as alice:
        await alice.credits()
        single.script("whisper", next=[{"text": sent}])
        first = await transcribe(alice, key="k-1")
        again = await transcribe(alice, key="k-1")
        assert (first.status_code, first.json()["text"]) == (200, text), first.text
        assert again.json() == first.json()
        assert await spent(alice) == Decimal(first.json()["credits_charged"])


async def test_twins_on_two_of_everything_are_charged_once(pair: Stack) -> None:
    async with pair.user() as alice:
        await alice.credits()
        answers = await asyncio.gather(*(transcribe(alice, key="twins") for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["credits_charged"] for answer in answers}) == 1
        assert await spent(alice) == Decimal(answers[0].json()["credits_charged"])
        assert len(await ledger(alice)) == 1


# --- the provider fails ---


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        ({"error": "overloaded"}, 502, "provider_unavailable"),
        ({"error": "invalid_key"}, 502, "provider_auth_failed"),
        ({"fault": "malformed"}, 502, "provider_bad_response"),
        ({"fault": "hang_up"}, 502, "provider_unavailable"),
        ({"error": "rate_limit", "retry_after": "60"}, 503, "provider_rate_limited"),
        ({"error": "unsupported_language"}, 422, "language_unsupported"),
    ],
)
async def test_a_failure_of_the_provider_has_its_code_and_costs_nothing(
    stack: Stack, alice: User, behaviour: dict[str, str], status: int, code: str
) -> None:
    stack.script("whisper", default=behaviour)
    response = await transcribe(alice)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert await spent(alice) == 0


# --- who leaves, and what dies ---


def nameless_files(process: Process) -> list[str]:
    """The spools that a process has open."""
    links = []
    for file in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            links.append(str(file.readlink()))
    return [link for link in links if link.endswith("(deleted)")]


async def quiet(stack: Stack, user: User) -> bool:
    """No spool, and nothing held."""
    left = nameless_files(stack["gateway0"]) + nameless_files(stack["speech0"])
    return not left and (await user.credits())["held"] == "0"


async def test_a_client_that_leaves_half_way_leaves_no_file_no_hold_no_charge(stack: Stack, alice: User) -> None:
    host, _, port = stack.gateway_urls[0].rpartition("//")[2].partition(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {alice.token}\r\nContent-Length: 20000000\r\n"
        client.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        client.sendall(b'--b\r\nContent-Disposition: form-data; name="audio_file"\r\n\r\n' + bytes(10 * MIB))

        async def spooled() -> bool:
            return bool(nameless_files(stack["gateway0"]))

        await until(spooled, saying="a spool")
    await until(lambda: quiet(stack, alice), saying="quiet")
    assert await spent(alice) == 0


async def test_a_client_that_leaves_while_the_provider_works_stops_it(stack: Stack, alice: User) -> None:
    stack.script("whisper", default={"fault": "hang"})
    file = tone("mp3", 3.1)
    task = asyncio.create_task(transcribe(alice, file))

    async def asked() -> bool:
        return bool(heard(stack, file)) and (await alice.credits())["held"] != "0"

    await until(asked, saying="the provider is asked")
    task.cancel()
    await asyncio.wait((task,))
    await until(lambda: quiet(stack, alice), saying="quiet")

    async def hung_up() -> bool:
        return bool(stack.requests("whisper")[-1]["closed_early"])

    await until(hung_up, saying="the provider is left")
    assert await spent(alice) == 0


async def test_a_crash_of_speech_leaves_a_hold_that_a_later_request_does_not_pay_for(pair: Stack) -> None:
    pair.script("whisper", default={"fault": "hang"})
    async with pair.user() as alice:
        await alice.credits()
        task = asyncio.create_task(transcribe(alice, key="crash"))

        async def held() -> bool:
            return (await alice.credits())["held"] != "0"

        await until(held, saying="a hold")
        for name in ("speech0", "speech1"):
            pair[name].kill()
        assert (await task).status_code == 503
        assert (await alice.credits())["balance"] == "10"
        pair.script("whisper", default={})
        for name in ("speech0", "speech1"):
            pair[name].start()
        pair.wait_until_ready()

        async def answered() -> httpx.Response | None:
            response = await transcribe(alice, key="crash")
            return response if response.status_code != 503 else None  # until the gateway has dialled again

        again = await until(answered, saying="speech is found again")
        assert again is not None
        assert again.status_code == 200, again.text
        assert await spent(alice) == Decimal(again.json()["credits_charged"])


# --- much at once ---


@pytest.mark.timeout(300)
async def test_fifty_uploads_of_24_mib_at_once_are_not_held_in_memory(stack: Stack, alice: User) -> None:
    processes = {name: psutil.Process(stack[name].pid) for name in ("gateway0", "speech0")}
    before = {name: process.memory_info().rss for name, process in processes.items()}
    peak, file, alice.timeout = dict(before), wav_of_size(24 * MIB), httpx.Timeout(240)
    uploads = [asyncio.create_task(transcribe(alice, file)) for _ in range(50)]
    while not all(upload.done() for upload in uploads):
        for name, process in processes.items():
            peak[name] = max(peak[name], process.memory_info().rss)
        await asyncio.wait(uploads, timeout=0.05)
    assert {upload.result().status_code for upload in uploads} == {200}
    growth = {name: (peak[name] - before[name]) // MIB for name in peak}
    assert max(growth.values()) < 150, growth
    assert await spent(alice) == 50 * charge(uploads[0].result().json()["duration_seconds"])
    await until(lambda: quiet(stack, alice), saying="quiet")


# --- nobody has a key ---


@pytest.fixture(scope="module")
def local_stack(
    postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack that hears with the local recogniser."""
    url = postgres.create_database("hearing", template=migrated_template)
    with Recogniser(tmp_path_factory.mktemp("recogniser")) as recogniser:
        env = {"SPEECH_PROVIDER": "local", "SPEECH_LOCAL_BASE_URL": recogniser.url}
        with Stack(tmp_path_factory.mktemp("hearing"), url, env=env) as running:
            yield running


async def test_spoken_words_come_back_as_text_and_are_called_low_quality(local_stack: Stack) -> None:
    async with local_stack.user() as alice:
        await alice.credits()
        response = await transcribe(alice, SPOKEN.read_bytes())
        assert response.status_code == 200, response.text
        assert {"good", "morning", "you"} <= set(response.json()["text"].split())
        assert response.json()["language"] == "en"
        assert response.headers["x-speech-quality"] == "low"
        assert await spent(alice) == Decimal(response.json()["credits_charged"]) > 0


async def test_the_local_recogniser_hears_a_minute_of_english(local_stack: Stack) -> None:
    async with local_stack.user() as alice:
        long = await transcribe(alice, tone("ogg", 61.0))
        assert (long.status_code, long.json()["code"]) == (422, "audio_too_long")
        french = await transcribe(alice, language="fr")
        assert (french.status_code, french.json()["code"]) == (422, "language_unsupported")
        assert await spent(alice) == 0
