"""The whole process: its settings, its start without anybody, its end."""

import asyncio
from uuid import uuid4

import grpc
import pytest
from backendai.common.v1 import common_pb2
from backendai.speech.v1 import speech_pb2 as pb
from backendai.speech.v1.speech_pb2_grpc import SpeechServiceStub
from pydantic import ValidationError

from deploy.local.server import free_port
from services.kit.grpc_client import dial
from services.kit.grpc_errors import reason_of
from services.speech.__main__ import main, make_provider
from services.speech.settings import POCKETSPHINX_BOUNDS, Settings
from tests.audio import tone
from tests.fakes.whisper import FakeWhisper
from tests.unit.speech.conftest import KEY, Account, RunningBilling
from tests.unit.speech.test_servicer import head, messages

LOCAL = "http://127.0.0.1:1/v1"


def settings_for(**changes: object) -> Settings:
    """Settings that no environment reaches."""
    values: dict[str, object] = {"openai_api_key": None, "speech_provider": None, "speech_model": None, **changes}
    return Settings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chosen", "provider", "model"),
    [
        ({}, None, None),
        ({"openai_api_key": KEY}, "openai", "whisper-1"),
        ({"speech_local_base_url": LOCAL}, "local", "pocketsphinx"),
        ({"openai_api_key": KEY, "speech_local_base_url": LOCAL}, "openai", "whisper-1"),
        ({"openai_api_key": KEY, "speech_local_base_url": LOCAL, "speech_provider": "local"}, "local", "pocketsphinx"),
        ({"openai_api_key": KEY, "speech_model": "gpt-transcribe"}, "openai", "gpt-transcribe"),
    ],
)
async def test_the_provider_is_the_first_that_can_be_reached(
    chosen: dict[str, object], provider: str | None, model: str | None
) -> None:
    made = make_provider(settings_for(**chosen))
    assert (made and made.name, made and made.model) == (provider, model)
    if made is not None:
        await made.close()


@pytest.mark.parametrize("provider", ["openai", "local"])
def test_a_provider_that_can_not_be_reached_is_a_mistake(provider: str) -> None:
    with pytest.raises(ValidationError, match=f"SPEECH_PROVIDER={provider} needs"):
        settings_for(speech_provider=provider)


def test_only_the_small_recogniser_has_small_bounds() -> None:
    local = settings_for(speech_local_base_url=LOCAL)
    other = settings_for(speech_local_base_url=LOCAL, speech_model="large")
    assert local.bounds_of("local") == POCKETSPHINX_BOUNDS
    assert other.bounds_of("local").max_seconds == other.speech_max_seconds
    assert other.bounds_of("local").languages is None


@pytest.mark.parametrize(
    ("model", "seconds"),
    [
        ("gpt-4o-transcribe", 1_400),
        ("gpt-4o-mini-transcribe", 1_400),
        ("gpt-4o-mini-transcribe-2025-12-15", 1_400),
        ("gpt-4o-transcribe-diarize", 1_400),
        ("openai/gpt-4o-transcribe", 1_400),
        ("whisper-1", 14_400),
        (None, 14_400),
    ],
)
def test_the_bound_is_the_model_s(model: str | None, seconds: float) -> None:
    settings = settings_for(openai_api_key=KEY, speech_model=model)
    assert settings.bounds_of("openai").max_seconds == seconds


def test_a_smaller_bound_of_the_settings_goes_before_the_model_s() -> None:
    settings = settings_for(openai_api_key=KEY, speech_model="gpt-4o-transcribe", speech_max_seconds=600)
    assert settings.bounds_of("openai").max_seconds == 600


async def test_the_process_answers_and_ends(
    running_billing: RunningBilling, account: Account, whisper: FakeWhisper
) -> None:
    settings = settings_for(
        speech_listen=f"127.0.0.1:{free_port()}",
        billing_address=running_billing.address,
        openai_api_key=KEY,
        openai_base_url=whisper.url,
        drain_seconds=5,
    )
    stop = asyncio.Event()
    process = asyncio.create_task(main(settings, stop))
    channel = dial(settings.speech_listen, "speech")
    try:
        call = SpeechServiceStub(channel).Transcribe(
            messages(head(account), tone("mp3", 2.0)), timeout=30, wait_for_ready=True
        )
        answer: pb.TranscribeResponse = await call
        assert (answer.text, answer.model) == ("Good morning.", "whisper-1")
    finally:
        await channel.close()
        stop.set()
        await process


async def test_without_billing_it_starts_and_says_unavailable() -> None:
    settings = settings_for(
        speech_listen=f"127.0.0.1:{free_port()}", billing_address="127.0.0.1:1", speech_local_base_url=LOCAL
    )
    stop = asyncio.Event()
    process = asyncio.create_task(main(settings, stop))
    channel = dial(settings.speech_listen, "speech")
    caller = common_pb2.Caller(user_id="alice", workspace_id=str(uuid4()), role=common_pb2.ROLE_OWNER)
    first = pb.TranscribeHead(caller=caller, hold_id=str(uuid4()))
    try:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await SpeechServiceStub(channel).Transcribe(messages(first, tone("mp3")), timeout=30, wait_for_ready=True)
        assert reason_of(refused.value) == "UNAVAILABLE"
    finally:
        await channel.close()
        stop.set()
        await process
