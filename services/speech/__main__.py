"""The speech process: `python -m services.speech`."""

import asyncio
import time

import structlog
from backendai.speech.v1.speech_pb2 import DESCRIPTOR
from backendai.speech.v1.speech_pb2_grpc import add_SpeechServiceServicer_to_server

from services.common.providers.calls import count_from_zero
from services.common.providers.retries import Retries
from services.kit import process
from services.kit.grpc_client import dial
from services.kit.grpc_server import Server, serve
from services.kit.tls import Tls
from services.speech.answers import Answers
from services.speech.billing import Billing
from services.speech.measure import Decoders
from services.speech.providers import Provider
from services.speech.providers.openai import OpenAI
from services.speech.servicer import SpeechServicer
from services.speech.settings import NO_KEY, Settings, keep_libraries_quiet
from services.speech.usecases import Transcriptions

# A hold outlives the provider's time by what holding and settling may take.
HOLD_SPARE_SECONDS = 30.0
DECODING_SECONDS = 120.0
ANSWER_TTL_SECONDS = 24 * 60 * 60.0
# gRPC would widen what each stream may send ahead of its reader, to megabytes for each of many uploads.
STEADY_WINDOW = (("grpc.http2.bdp_probe", 0),)

log = structlog.get_logger()


def make_provider(settings: Settings) -> Provider | None:
    """The one that is configured, if any."""
    name = settings.provider
    if name is None:
        return None
    key = settings.openai_api_key if name == "openai" else None
    return OpenAI(
        name,
        settings.model_of(name),
        bounds=settings.bounds_of(name),
        api_key=key.get_secret_value() if key is not None else NO_KEY,
        base_url=settings.base_url_of(name),
    )


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Put the parts together and serve until `stop`."""
    keep_libraries_quiet()
    tls = Tls.of(settings.grpc_tls_dir)
    provider, channel = make_provider(settings), dial(settings.billing_address, "billing", tls)
    count_from_zero([provider.name] if provider else [])
    transcriptions = Transcriptions(
        provider,
        Billing(channel, hold_seconds=settings.speech_timeout_s + HOLD_SPARE_SECONDS, clock=time.time),
        Decoders(settings.speech_decoders, timeout_seconds=DECODING_SECONDS),
        Answers(size_bytes=settings.speech_cache_mib * 2**20, ttl_seconds=ANSWER_TTL_SECONDS),
        limit=settings.speech_concurrency,
        timeout_seconds=settings.speech_timeout_s,
        retries=Retries(),
    )
    name, model = (provider.name, provider.model) if provider else ("", "")
    server = Server(
        settings.speech_listen,
        tls=tls,
        ops_listen=settings.ops_listen,
        reflects=DESCRIPTOR if settings.grpc_reflection else None,
        options=STEADY_WINDOW,
    )
    add_SpeechServiceServicer_to_server(SpeechServicer(transcriptions, provider=name, model=model), server.grpc)
    log.info("transcribing_with", provider=name or None, model=model or None)
    try:
        await serve(server, stop, drain_seconds=settings.drain_seconds)
    finally:
        await transcriptions.close()
        await channel.close()
        if provider is not None:
            await provider.close()


if __name__ == "__main__":
    chosen = Settings.read()
    process.run("speech", chosen, lambda stop: main(chosen, stop))
