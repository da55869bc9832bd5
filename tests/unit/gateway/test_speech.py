"""POST /api/transcribe-audio/: what is passed on, what is refused here, and who leaves."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import pytest
from backendai.chat.v1 import chat_pb2
from backendai.common.v1 import common_pb2
from backendai.speech.v1 import speech_pb2 as pb
from fastapi import Request

from gateway import uploads
from gateway.server import Gateway
from gateway.uploads import MAX_FILE_BYTES, Uploads
from services.common.providers.errors import (
    ProviderAuthFailed,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.kit.spool import Spool
from services.speech import errors
from tests.unit.gateway.conftest import DEAD, FakeServices, client_of, served, settings_for, until
from tests.unit.gateway.samples import OTHER_WORKSPACE, WORKSPACE, token

PATH = "/api/transcribe-audio/"
SOUND = b"RIFF" + os.urandom(700_000)
MADE = pb.TranscribeResponse(
    text="Good morning.",
    language="en",
    duration_seconds=7.3,
    charged_nano=730_000,
    provider="openai",
    model="whisper-1",
)
Parts = list[tuple[str, Any]]


def form(file: bytes = SOUND, *, name: str = "a.wav", **fields: str) -> dict[str, Any]:
    """A whole form, for httpx."""
    return {"files": {"audio_file": (name, file)}, "data": {"workspace_id": WORKSPACE, **fields}}


def raw(*parts: tuple[str, bytes], boundary: str = "b", end: bytes = b"--\r\n") -> dict[str, Any]:
    """A form, part by part: a Content-Disposition and what it is of."""
    body = b"".join(
        b"--b\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + data + b"\r\n"
        for disposition, data in parts
    )
    return {"content": body + b"--b" + end, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


FILE = ('form-data; name="audio_file"; filename="a.wav"', SOUND)
WORKSPACE_ID = ('form-data; name="workspace_id"', WORKSPACE.encode())


def sent(services: FakeServices) -> tuple[pb.TranscribeHead, bytes]:
    """What speech was asked, of the only call."""
    [messages] = services.requests("Transcribe")
    return messages[0].head, b"".join(message.chunk for message in messages[1:])


async def test_a_file_becomes_text(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["Transcribe"] = MADE
    response = await client.post(PATH, **form(language="en"))
    assert response.status_code == 200, response.text
    assert response.json() == {
        "text": "Good morning.",
        "language": "en",
        "duration_seconds": 7.3,
        "credits_charged": "0.00073",
    }
    assert response.headers["x-speech-provider"] == "openai"
    assert response.headers["x-speech-model"] == "whisper-1"
    assert "x-speech-quality" not in response.headers
    head, file = sent(services)
    caller = common_pb2.Caller(user_id="alice", workspace_id=WORKSPACE, role=common_pb2.ROLE_OWNER)
    assert (head.caller, head.language, head.may_repeat) == (caller, "en", False)
    assert file == SOUND


async def test_the_local_recogniser_is_called_what_it_is(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["Transcribe"] = pb.TranscribeResponse(text="good", provider="local", model="pocketsphinx")
    response = await client.post(PATH, **form())
    assert response.headers["x-speech-quality"] == "low"
    assert response.json()["language"] is None


@pytest.mark.parametrize("parts", [[FILE, WORKSPACE_ID], [WORKSPACE_ID, FILE]], ids=["file first", "file last"])
async def test_parts_come_in_any_order(client: httpx.AsyncClient, services: FakeServices, parts: Parts) -> None:
    response = await client.post(PATH, **raw(*parts))
    assert response.status_code == 200, response.text
    assert sent(services)[1] == SOUND


@pytest.mark.parametrize("name", ["../../x", "a" * 5_000, "é" * 5_000, "", 'q"uo;te.mp3', "C:\\x\\y.wav"])
async def test_the_file_s_name_does_not_matter(client: httpx.AsyncClient, services: FakeServices, name: str) -> None:
    response = await client.post(PATH, **form(name=name))
    assert response.status_code == 200, response.text


async def test_an_empty_language_is_none(client: httpx.AsyncClient, services: FakeServices) -> None:
    assert (await client.post(PATH, **form(language=""))).status_code == 200
    assert sent(services)[0].language == ""


@pytest.mark.parametrize(
    ("request_of", "status", "code"),
    [
        (raw(WORKSPACE_ID), 422, "validation_error"),
        (raw(FILE), 422, "validation_error"),
        (raw(FILE, FILE, WORKSPACE_ID), 422, "validation_error"),
        (raw(FILE, WORKSPACE_ID, WORKSPACE_ID), 422, "validation_error"),
        (raw(FILE, WORKSPACE_ID, ('form-data; name="user_id"', b"bob")), 422, "validation_error"),
        (raw(*[(f'form-data; name="{n}"', b"x") for n in range(1_000)]), 422, "validation_error"),
        (raw(FILE, ('form-data; name="workspace_id"', b"x" * 2_000)), 422, "validation_error"),
        (raw(FILE, ('form-data; name="workspace_id"', b"\xff\xfe")), 422, "validation_error"),
        (raw(FILE, WORKSPACE_ID, ('form-data; name="language"', b"e\0")), 422, "validation_error"),
        (raw(FILE, ('form-data; name="workspace_id"', b"7")), 404, "not_found"),
        (raw(FILE, ("form-data", b"x"), WORKSPACE_ID), 400, "malformed_multipart"),
        (raw(FILE, ('attachment; name="workspace_id"', b"x")), 400, "malformed_multipart"),
        (raw(FILE, WORKSPACE_ID, boundary=""), 400, "malformed_multipart"),
        (raw(FILE, WORKSPACE_ID, boundary="c"), 400, "malformed_multipart"),
        (raw(FILE, WORKSPACE_ID, boundary="x" * 1_000), 400, "malformed_multipart"),
        (raw(FILE, WORKSPACE_ID, end=b""), 400, "malformed_multipart"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "malformed_multipart"),
        ({"content": SOUND, "headers": {"Content-Type": "multipart/form-data"}}, 400, "malformed_multipart"),
        ({"content": SOUND, "headers": {"Content-Type": "audio/mpeg"}}, 415, "unsupported_media_type"),
        ({"json": {"audio_file": "x"}}, 415, "unsupported_media_type"),
        ({"content": b""}, 415, "unsupported_media_type"),
        (
            {
                "content": b"x",
                "headers": {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"},
            },
            415,
            "unsupported_media_type",
        ),
        (raw(("form-data; name=audio_file; x=" + "y" * 70_000, SOUND), WORKSPACE_ID), 400, "malformed_multipart"),
        (raw(("form-data; name=audio_file\r\nA: b" * 20, SOUND), WORKSPACE_ID), 400, "malformed_multipart"),
    ],
)
async def test_another_form_is_refused_and_nobody_is_asked(
    client: httpx.AsyncClient, services: FakeServices, request_of: dict[str, Any], status: int, code: str
) -> None:
    response = await client.post(PATH, **request_of)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert not services.requests("Transcribe")
    assert not services.requests("CheckCredits")


async def test_a_guest_gets_the_404_of_an_unknown_workspace(guest: httpx.AsyncClient, services: FakeServices) -> None:
    response = await guest.post(PATH, **form())
    unknown = await guest.post(PATH, **{**form(), "data": {"workspace_id": OTHER_WORKSPACE}})
    malformed = await guest.post(PATH, **{**form(), "data": {"workspace_id": "nope"}})
    assert {r.status_code for r in (response, unknown, malformed)} == {404}
    bodies = [{**r.json(), "request_id": ""} for r in (response, unknown, malformed)]
    assert bodies[0] == bodies[1] == bodies[2]
    assert not services.asked


async def test_a_viewer_may_not(gateway: Gateway, services: FakeServices) -> None:
    async with client_of(gateway, workspaces={WORKSPACE: "viewer"}) as viewer:
        response = await viewer.post(PATH, **form())
    assert (response.status_code, response.json()["code"]) == (403, "permission_denied")
    assert not services.requests("Transcribe")


async def test_without_credit_nothing_leaves(client: httpx.AsyncClient, services: FakeServices) -> None:
    from services.billing.errors import InsufficientCredits

    services.answers["CheckCredits"] = InsufficientCredits()
    response = await client.post(PATH, **form())
    assert (response.status_code, response.json()["code"]) == (402, "insufficient_credits")
    assert not services.requests("Transcribe")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.AudioEmpty(), 422, "audio_empty"),
        (errors.AudioTypeUnsupported(), 415, "audio_type_unsupported"),
        (errors.AudioUndecodable(), 422, "audio_undecodable"),
        (errors.AudioTooLarge(), 413, "audio_too_large"),
        (errors.AudioTooLong(), 422, "audio_too_long"),
        (errors.LanguageUnknown(field="language"), 422, "language_unknown"),
        (errors.ProviderNotConfigured(), 422, "provider_not_configured"),
        (errors.TooManyTries(), 409, "too_many_tries"),
        (ProviderUnavailable(), 502, "provider_unavailable"),
        (ProviderAuthFailed(), 502, "provider_auth_failed"),
        (ProviderTimeout(), 504, "provider_timeout"),
        (ProviderRateLimited(retry_after_seconds=7), 503, "provider_rate_limited"),
        (grpc.StatusCode.UNAVAILABLE, 503, "unavailable"),
        (grpc.StatusCode.INTERNAL, 500, "internal_error"),
    ],
)
async def test_a_refusal_of_speech_is_a_problem(
    client: httpx.AsyncClient, services: FakeServices, error: Any, status: int, code: str
) -> None:
    services.answers["Transcribe"] = error
    response = await client.post(PATH, **form())
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert ("retry-after" in response.headers) == (status == 503)


async def test_without_speech_it_is_503(services: FakeServices) -> None:
    gateway = Gateway(settings_for(services.address, speech_address=DEAD))
    async with client_of(gateway) as client:
        response = await client.post(PATH, **form())
    await gateway.close()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


# --- a key ---


async def test_a_key_names_the_work(client: httpx.AsyncClient, services: FakeServices) -> None:
    earlier = "0197a1b2-0000-7000-8000-00000000000a"
    services.answers["BindIdempotencyKey"] = chat_pb2.BindIdempotencyKeyResponse(resource_id=earlier)
    response = await client.post(PATH, **form(), headers={"Idempotency-Key": "k"})
    assert response.status_code == 200, response.text
    head, _ = sent(services)
    assert (head.hold_id, head.may_repeat) == (earlier, True)
    assert not services.requests("CheckCredits")
    [bound] = services.requests("BindIdempotencyKey")
    assert (bound.route, bound.idempotency_key, len(bound.request_fingerprint)) == ("transcribe", "k", 32)


async def test_the_first_request_with_a_key_must_find_credit(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["BindIdempotencyKey"] = lambda request: chat_pb2.BindIdempotencyKeyResponse(
        resource_id=request.resource_id
    )
    await client.post(PATH, **form(), headers={"Idempotency-Key": "k"})
    assert len(services.requests("CheckCredits")) == 1


async def test_a_body_is_the_same_in_any_order_and_under_any_name(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    other_name = ('form-data; name="audio_file"; filename="b.wav"', SOUND)
    no_language = ('form-data; name="language"', b"")
    forms = [raw(FILE, WORKSPACE_ID), raw(WORKSPACE_ID, other_name, no_language)]
    forms += [raw(FILE, WORKSPACE_ID, ('form-data; name="language"', b"en")), raw((FILE[0], SOUND[1:]), WORKSPACE_ID)]
    for one in forms:
        one["headers"]["Idempotency-Key"] = "k"
        await client.post(PATH, **one)
    prints = [request.request_fingerprint for request in services.requests("BindIdempotencyKey")]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("key", ["", "x" * 256, "\x7f"])
async def test_a_bad_key_is_refused_before_the_body(
    client: httpx.AsyncClient, services: FakeServices, key: str
) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""  # type: ignore[unreachable]

    response = await client.post(PATH, content=unread(), headers={"Idempotency-Key": key})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_idempotency_key")


# --- size, time, room, leaving: on a real connection ---


@pytest.fixture
def spools(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Spool]]:
    """Every spool that is made; at the end all must be closed."""
    made: list[Spool] = []

    def make() -> Spool:
        made.append(Spool())
        return made[-1]

    monkeypatch.setattr(uploads, "Spool", make)
    yield made
    for spool in made:
        with pytest.raises(ValueError, match="closed"):
            spool.fileno()


async def pieces(*first: bytes, size: int, total: int) -> AsyncIterator[bytes]:
    for piece in first:
        yield piece
    for _ in range(total // size):
        yield bytes(size)


HEAD = b'--b\r\nContent-Disposition: form-data; name="audio_file"; filename="a"\r\n\r\n'
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


async def test_a_file_of_exactly_25_mib_passes_and_a_byte_more_does_not(
    client: httpx.AsyncClient, services: FakeServices, spools: list[Spool]
) -> None:
    assert (await client.post(PATH, **form(bytes(MAX_FILE_BYTES)))).status_code == 200
    assert len(sent(services)[1]) == MAX_FILE_BYTES
    response = await client.post(PATH, **form(bytes(MAX_FILE_BYTES + 1)))
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


async def test_a_declared_size_is_believed_before_the_body_comes(services: FakeServices, gateway: Gateway) -> None:
    async with served(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\nContent-Length: 99999999\r\n"
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        assert b" 413 " in await reader.readline()
        writer.close()


async def test_an_endless_file_is_cut_off_while_it_streams(
    services: FakeServices, gateway: Gateway, spools: list[Spool]
) -> None:
    async with served(gateway) as port, httpx.AsyncClient() as client:
        body = pieces(HEAD, size=2**20, total=40 * 2**20)
        response = await client.post(
            f"http://127.0.0.1:{port}{PATH}", content=body, headers={"Authorization": f"Bearer {token()}", **MULTIPART}
        )
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


async def test_who_never_stops_is_hung_up_on(services: FakeServices, gateway: Gateway) -> None:
    async def endless() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\nTransfer-Encoding: chunked\r\n"
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        for piece in (HEAD, *[bytes(2**20)] * 200):
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()

    async with served(gateway) as port:
        with pytest.raises(ConnectionError):
            await endless()


async def test_a_client_that_leaves_half_way_leaves_nothing(
    services: FakeServices, gateway: Gateway, spools: list[Spool]
) -> None:
    async with served(gateway) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\nContent-Length: 9000000\r\n"
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + HEAD + bytes(2**20))
        await until(lambda: spools and spools[0].size)
        writer.close()
        await until(lambda: spools[0]._file.closed)
    assert not services.requests("Transcribe")


async def test_a_client_that_leaves_while_it_waits_cancels_the_call(
    services: FakeServices, gateway: Gateway, spools: list[Spool]
) -> None:
    cancelled = asyncio.Event()

    async def never(_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    services.answers["Transcribe"] = never
    async with served(gateway) as port, httpx.AsyncClient() as client:
        url, headers = f"http://127.0.0.1:{port}{PATH}", {"Authorization": f"Bearer {token()}"}
        post = asyncio.create_task(client.post(url, **form(), headers=headers))
        await until(lambda: services.requests("Transcribe"))
        post.cancel()
        await asyncio.wait((post,))
        async with asyncio.timeout(5):
            await cancelled.wait()


async def test_a_silent_client_is_sent_away(
    services: FakeServices, gateway: Gateway, spools: list[Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.1)
    async with served(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\nContent-Length: 9000000\r\n"
        writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + HEAD)
        assert b" 408 " in await reader.readline()
        writer.close()


async def test_a_full_disk_is_503(
    client: httpx.AsyncClient, services: FakeServices, spools: list[Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: Spool, piece: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "write", full)
    response = await client.post(PATH, **form())
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


async def test_more_than_the_process_takes_is_503(gateway: Gateway, services: FakeServices) -> None:
    full = Uploads(limit=0)
    scope = {"type": "http", "headers": [], "method": "POST", "path": PATH}
    with pytest.raises(Exception, match="overloaded"):
        async with full.receive(Request(scope), file="audio_file", fields=()):
            pass
