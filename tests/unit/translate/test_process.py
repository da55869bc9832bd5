"""The whole process over gRPC: what it says, how long it waits, how it starts and ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import grpc
import pytest
import structlog
from backendai.common.v1 import common_pb2
from backendai.translate.v1 import translate_pb2 as pb
from backendai.translate.v1.translate_pb2_grpc import TranslateServiceStub
from pydantic import ValidationError

from deploy.local.server import free_port
from services.kit.grpc_client import dial
from services.kit.grpc_errors import reason_of
from services.translate.__main__ import main, make_provider
from services.translate.settings import Settings
from tests.fakes.billing import FakeBilling
from tests.fakes.gemini import FakeGemini
from tests.fakes.openai import FakeOpenAI
from tests.fakes.provider import Behaviour
from tests.unit.translate.conftest import KEY, translated

WITHIN_SECONDS = 10.0
PROVIDER_VARIABLES = ("OPENAI_API_KEY", "GOOGLE_API_KEY", "OPENAI_BASE_URL", "GOOGLE_BASE_URL")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have some."""
    for name in PROVIDER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def settings_for(billing: FakeBilling, openai: FakeOpenAI | None = None, **changes: Any) -> Settings:
    """As the environment would give them."""
    key = {"openai_api_key": KEY, "openai_base_url": openai.url} if openai else {}
    return Settings(
        **{
            "translate_listen": f"127.0.0.1:{free_port()}",
            "billing_address": billing.address,
            "drain_seconds": 5,
            **key,
            **changes,
        }
    )


class Client:
    """Asks a running process."""

    def __init__(self, channel: grpc.aio.Channel, stop: asyncio.Event, process: "asyncio.Task[None]") -> None:
        self._stub = TranslateServiceStub(channel)
        self.stop, self.process = stop, process

    def ask(self, text: str = "Hello world", *, seconds: float = 10, **changes: Any) -> Any:
        """One call."""
        fields: dict[str, Any] = {"caller": a_caller(), "text": text, "target": "de", **changes}
        return self._stub.TranslateText(pb.TranslateTextRequest(**fields), timeout=seconds)

    async def failure(self, **changes: Any) -> tuple[grpc.StatusCode, str]:
        """The code and reason of a call that fails."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.ask(**changes)
        return caught.value.code(), reason_of(caught.value)


def a_caller(role: common_pb2.Role.ValueType = common_pb2.ROLE_MEMBER, **changes: str) -> common_pb2.Caller:
    return common_pb2.Caller(**{"user_id": "alice", "workspace_id": str(uuid4()), "role": role, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Client]:
    """The process's main, listening, and a client of it."""
    stop = asyncio.Event()
    process = asyncio.create_task(main(settings, stop))
    channel = dial(settings.translate_listen, "translate")
    try:
        async with asyncio.timeout(WITHIN_SECONDS):
            await channel.channel_ready()
        yield Client(channel, stop, process)
    finally:
        await channel.close()
        stop.set()
        await process


@pytest.fixture
async def client(billing: FakeBilling, openai_fake: FakeOpenAI) -> AsyncIterator[Client]:
    async with running(settings_for(billing, openai_fake)) as client:
        yield client


async def test_a_translation_says_who_made_it_and_what_it_took(client: Client, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = translated(output_tokens=10)
    assert await client.ask(target="DE-at") == pb.TranslateTextResponse(
        translated_text="Hallo Welt",
        source="en",
        target="de-AT",
        provider="openai",
        model="gpt-4.1-mini",
        charged_nano=110,
    )


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"target": "xx-nope"}, "INVALID_ARGUMENT", "LANGUAGE_UNKNOWN"),
        ({"target": ""}, "INVALID_ARGUMENT", "LANGUAGE_UNKNOWN"),
        ({"source": "und"}, "INVALID_ARGUMENT", "LANGUAGE_UNKNOWN"),
        ({"text": ""}, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ({"text": "a" * 5_001}, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ({"caller": a_caller(common_pb2.ROLE_VIEWER)}, "PERMISSION_DENIED", "PERMISSION_DENIED"),
        ({"caller": a_caller(common_pb2.ROLE_UNSPECIFIED)}, "NOT_FOUND", "NOT_FOUND"),
        ({"caller": a_caller(workspace_id="x")}, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ({"caller": a_caller(user_id="")}, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ],
)
async def test_what_can_not_be_asked_holds_nothing(
    client: Client, billing: FakeBilling, changes: dict[str, Any], code: str, reason: str
) -> None:
    assert await client.failure(**changes) == (grpc.StatusCode[code], reason)
    assert not billing.calls


async def test_a_provider_that_breaks_is_told_as_such(client: Client, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = Behaviour(error="invalid_key")
    assert await client.failure() == (grpc.StatusCode.INTERNAL, "PROVIDER_AUTH_FAILED")


async def test_a_call_answers_before_its_deadline_whatever_the_provider_does(
    client: Client, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(fault="hang")
    started = time.monotonic()
    assert await client.failure(seconds=0.6) == (grpc.StatusCode.DEADLINE_EXCEEDED, "PROVIDER_TIMEOUT")
    assert time.monotonic() - started < 0.6
    await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    await billing.until(lambda: billing.released)


async def test_a_cancelled_call_stops_the_provider(
    client: Client, billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(fault="hang")
    call = client.ask()
    await openai_fake.until(lambda: openai_fake.requests)
    call.cancel()
    await openai_fake.until(lambda: openai_fake.requests[0].closed_early)
    await billing.until(lambda: billing.released)
    assert not billing.open_holds


async def test_more_than_may_be_under_way_are_refused(billing: FakeBilling, openai_fake: FakeOpenAI) -> None:
    openai_fake.default = translated(first_token_delay_ms=300)
    async with running(settings_for(billing, openai_fake, translate_concurrency=2)) as client:
        results = await asyncio.gather(*(client.ask(str(number)) for number in range(5)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert [(error.code(), reason_of(error)) for error in refused] == [(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")] * 3


async def test_the_end_of_the_process_waits_for_what_is_under_way(
    billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = translated(first_token_delay_ms=300)
    async with running(settings_for(billing, openai_fake)) as client:
        call = asyncio.ensure_future(client.ask())
        await openai_fake.until(lambda: openai_fake.requests)
        client.stop.set()
        assert (await call).translated_text == "Hallo Welt"
        await client.process


async def test_the_end_of_the_process_gives_back_what_did_not_come_to_its_end(
    billing: FakeBilling, openai_fake: FakeOpenAI
) -> None:
    openai_fake.default = Behaviour(fault="hang")
    async with running(settings_for(billing, openai_fake, drain_seconds=0)) as client:
        call = asyncio.ensure_future(client.ask())
        await openai_fake.until(lambda: openai_fake.requests)
        client.stop.set()
        with suppress(grpc.aio.AioRpcError):
            await call
        await client.process
    assert len(billing.released) == 1


async def test_nothing_of_a_text_or_a_key_is_logged(billing: FakeBilling, openai_fake: FakeOpenAI) -> None:
    openai_fake.queue.extend([Behaviour("a secret answer"), translated("ein geheimer Satz")])
    with structlog.testing.capture_logs() as lines:
        async with running(settings_for(billing, openai_fake)) as client:
            await client.ask("a secret sentence")
            openai_fake.default = Behaviour(error="invalid_key")
            await client.failure(text="another secret sentence")
    said = str(lines)
    assert "answer_did_not_fit" in said
    assert "secret" not in said
    assert "geheim" not in said


async def test_a_port_in_use_is_a_sentence(billing: FakeBilling) -> None:
    settings = settings_for(billing)
    async with running(settings):
        with pytest.raises(SystemExit, match="in use"):
            await main(settings, asyncio.Event())


@pytest.mark.parametrize(
    ("given", "provider", "model"),
    [
        ({}, "placeholder", "echo"),
        ({"openai_api_key": KEY}, "openai", "gpt-4.1-mini"),
        ({"google_api_key": KEY}, "google", "gemini-3.5-flash-lite"),
        ({"openai_api_key": KEY, "google_api_key": KEY}, "openai", "gpt-4.1-mini"),
        ({"openai_api_key": KEY, "google_api_key": KEY, "translate_provider": "google"}, "google", None),
        ({"openai_api_key": KEY, "translate_model": "gpt-5-nano"}, "openai", "gpt-5-nano"),
        ({"openai_api_key": KEY, "translate_provider": "placeholder"}, "placeholder", "echo"),
    ],
)
async def test_the_first_provider_with_a_key_translates_unless_another_is_chosen(
    given: dict[str, Any], provider: str, model: str | None
) -> None:
    made = make_provider(Settings(**given))
    assert made.name == provider
    assert model in (made.model, None)
    await made.close()


@pytest.mark.parametrize("provider", ["openai", "google"])
def test_a_provider_without_its_key_is_refused_at_the_start(provider: str) -> None:
    with pytest.raises(ValidationError, match=f"{provider.upper()}_API_KEY"):
        Settings(translate_provider=provider)


async def test_the_process_translates_with_gemini_too(billing: FakeBilling, gemini_fake: FakeGemini) -> None:
    async with running(
        settings_for(billing, google_api_key=KEY, google_base_url=gemini_fake.url, translate_model="gemini-2.5-pro")
    ) as client:
        answer = await client.ask()
    assert (answer.provider, answer.model, answer.translated_text) == ("google", "gemini-2.5-pro", "Hallo Welt")
