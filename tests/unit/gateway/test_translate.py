"""GET …/translate/: what is passed on, what is refused here, and who leaves."""

import asyncio
import contextlib
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
from backendai.common.v1 import common_pb2
from backendai.translate.v1 import translate_pb2 as pb

from gateway.server import Gateway
from services.common.providers.errors import (
    ContentFiltered,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from services.translate.errors import InsufficientCredits, LanguageUnknown
from tests.unit.gateway.conftest import DEAD, FakeServices, client_of, served, settings_for, until
from tests.unit.gateway.samples import TRANSLATE, WORKSPACE, token

MADE = pb.TranslateTextResponse(
    translated_text="Guten Morgen",
    source="en",
    target="de",
    provider="openai",
    model="gpt-4.1-mini",
    charged_nano=12_340,
)
ASKED = {"text": "Good morning", "target": "de"}


async def test_a_translation_is_answered_with_what_it_took(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["TranslateText"] = MADE
    response = await client.get(TRANSLATE, params=ASKED)
    assert response.status_code == 200, response.text
    assert response.json() == {
        "text": "Good morning",
        "translated_text": "Guten Morgen",
        "source": "en",
        "target": "de",
        "provider": "openai",
        "model": "gpt-4.1-mini",
        "credits_charged": "0.00001234",
    }
    assert response.headers["cache-control"] == "no-store"


async def test_the_service_is_told_who_asks_for_what(client: httpx.AsyncClient, services: FakeServices) -> None:
    await client.get(TRANSLATE, params={**ASKED, "source": "en-GB"})
    [request] = services.requests("TranslateText")
    assert request == pb.TranslateTextRequest(
        caller=common_pb2.Caller(user_id="alice", workspace_id=WORKSPACE, role=common_pb2.ROLE_OWNER),
        text="Good morning",
        target="de",
        source="en-GB",
    )


@pytest.mark.parametrize(
    "text", ["a", "a" * 5_000, "🎉" * 5_000, "é\u0301 \u202eabc", "a+b & c=d %41 #", " padded ", "line\nline\ttab"]
)
async def test_a_text_arrives_as_it_was_sent(client: httpx.AsyncClient, services: FakeServices, text: str) -> None:
    response = await client.get(f"{TRANSLATE}?text={quote(text)}&target=de")
    assert response.status_code == 200, response.text
    assert services.requests("TranslateText")[0].text == text
    assert response.json()["text"] == text


@pytest.mark.parametrize("text", ["%ff", "%C3", "%ED%A0%80", "%C0%AF", "ok%80"])
async def test_what_is_no_utf8_is_400(client: httpx.AsyncClient, services: FakeServices, text: str) -> None:
    response = await client.get(f"{TRANSLATE}?text={text}&target=de")
    assert (response.status_code, response.json()["code"]) == (400, "malformed_query")
    assert not services.requests("TranslateText")


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("target=de", "/text"),
        ("text=&target=de", "/text"),
        ("text=%20%0a&target=de", "/text"),
        ("text=a%00b&target=de", "/text"),
        (f"text={'a' * 5_001}&target=de", "/text"),
        (f"text={quote('🎉' * 5_001)}&target=de", "/text"),
        ("text=Hello", "/target"),
        ("text=Hello&target=", "/target"),
        (f"text=Hello&target={'a' * 36}", "/target"),
        (f"text=Hello&target=de&source={'a' * 36}", "/source"),
    ],
)
async def test_what_can_not_be_translated_is_422_and_asks_nobody(
    client: httpx.AsyncClient, services: FakeServices, query: str, pointer: str
) -> None:
    response = await client.get(f"{TRANSLATE}?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]
    assert not services.requests("TranslateText")


async def test_an_unknown_language_is_422_at_its_parameter(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["TranslateText"] = LanguageUnknown("target must be a language tag.", field="target")
    response = await client.get(TRANSLATE, params={**ASKED, "target": "xx-nope"})
    assert (response.status_code, response.json()["code"]) == (422, "language_unknown")
    assert response.json()["errors"] == [{"pointer": "/target", "detail": "target must be a language tag."}]


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (InsufficientCredits(), 402, "insufficient_credits"),
        (ProviderUnavailable(), 502, "provider_unavailable"),
        (ProviderAuthFailed(), 502, "provider_auth_failed"),
        (ProviderBadResponse(), 502, "provider_bad_response"),
        (ContentFiltered(), 502, "content_filtered"),
        (ProviderTimeout(), 504, "provider_timeout"),
        (ProviderRateLimited(), 503, "provider_rate_limited"),
        (grpc.StatusCode.UNAVAILABLE, 503, "unavailable"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
        (grpc.StatusCode.INTERNAL, 500, "internal_error"),
    ],
)
async def test_a_failure_has_its_status_and_code(
    client: httpx.AsyncClient, services: FakeServices, failure: Any, status: int, code: str
) -> None:
    services.answers["TranslateText"] = failure
    response = await client.get(TRANSLATE, params=ASKED)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert ("retry-after" in response.headers) == (status == 503)


async def test_how_long_the_provider_wants_to_be_left_alone_is_passed_on(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["TranslateText"] = ProviderRateLimited(retry_after_seconds=41.5)
    assert (await client.get(TRANSLATE, params=ASKED)).headers["retry-after"] == "42"


async def test_a_viewer_is_403(gateway: Gateway, services: FakeServices) -> None:
    async with client_of(gateway, workspaces={WORKSPACE: "viewer"}) as viewer:
        response = await viewer.get(TRANSLATE, params=ASKED)
    assert (response.status_code, response.json()["code"]) == (403, "permission_denied")
    assert not services.requests("TranslateText")


async def test_a_guest_is_told_what_is_told_of_a_workspace_that_does_not_exist(
    guest: httpx.AsyncClient, services: FakeServices
) -> None:
    answers = [
        await guest.get(path, params=ASKED, headers={"X-Request-Id": "same"})
        for path in (TRANSLATE, TRANSLATE.replace(WORKSPACE, "no-uuid"))
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    assert not services.requests("TranslateText")


async def test_only_get_is_there(client: httpx.AsyncClient) -> None:
    response = await client.post(TRANSLATE, json=ASKED)
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


async def test_without_the_service_only_translations_are_503(services: FakeServices) -> None:
    gateway = Gateway(settings_for(services.address, translate_address=DEAD))
    async with client_of(gateway) as client:
        response = await client.get(TRANSLATE, params=ASKED)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert (await client.get("/api/models/")).status_code == 200
        assert "translate" not in (await client.get("/readyz")).json()
    await gateway.close()


async def test_a_client_that_leaves_cancels_the_call(gateway: Gateway, services: FakeServices) -> None:
    cancelled = asyncio.Event()

    async def never(_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    services.answers["TranslateText"] = never
    async with served(gateway) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f" HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token()}\r\n\r\n"
        writer.write(b"GET " + TRANSLATE.encode() + b"?text=Hello&target=de" + head.encode())
        await until(lambda: services.requests("TranslateText"))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        async with asyncio.timeout(5):
            await cancelled.wait()
