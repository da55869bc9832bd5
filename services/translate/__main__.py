"""The translate process: `python -m services.translate`."""

import asyncio
import time

import structlog
from backendai.translate.v1.translate_pb2 import DESCRIPTOR
from backendai.translate.v1.translate_pb2_grpc import add_TranslateServiceServicer_to_server

from services.common.providers.calls import count_from_zero
from services.common.providers.retries import Retries
from services.kit import process
from services.kit.grpc_client import dial
from services.kit.grpc_server import Server, serve
from services.kit.tls import Tls
from services.translate.billing import Billing
from services.translate.flights import Flights
from services.translate.providers import Provider
from services.translate.providers.placeholder import Placeholder
from services.translate.servicer import TranslateServicer
from services.translate.settings import Settings, keep_libraries_quiet
from services.translate.usecases import Paid, Translations, make_cache

# A hold outlives the provider's time by what holding and settling may take.
HOLD_SPARE_SECONDS = 30.0

log = structlog.get_logger()


def make_provider(settings: Settings) -> Provider:
    """The one that is configured. The other's SDK is not even loaded: each takes a second and 50 MB."""
    key = settings.key_of(settings.provider)
    if key is None:
        return Placeholder()
    if settings.provider == "google":
        from services.translate.providers.google import Google

        return Google(settings.model, api_key=key.get_secret_value(), base_url=settings.google_base_url)
    from services.translate.providers.openai import OpenAI

    return OpenAI(settings.model, api_key=key.get_secret_value(), base_url=settings.openai_base_url)


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Put the parts together and serve until `stop`."""
    keep_libraries_quiet()
    tls = Tls.of(settings.grpc_tls_dir)
    provider, channel = make_provider(settings), dial(settings.billing_address, "billing", tls)
    count_from_zero([provider.name])
    flights = Flights[Paid](limit=settings.translate_concurrency)
    translations = Translations(
        provider,
        Billing(channel, hold_seconds=settings.translate_timeout_s + HOLD_SPARE_SECONDS, clock=time.time),
        make_cache(size_bytes=settings.translate_cache_mib * 2**20, ttl_seconds=settings.translate_cache_ttl_s),
        flights,
        timeout_seconds=settings.translate_timeout_s,
        retries=Retries(),
    )
    server = Server(
        settings.translate_listen,
        tls=tls,
        ops_listen=settings.ops_listen,
        reflects=DESCRIPTOR if settings.grpc_reflection else None,
    )
    add_TranslateServiceServicer_to_server(TranslateServicer(translations), server.grpc)
    log.info("translating_with", provider=provider.name, model=provider.model)
    try:
        await serve(server, stop, drain_seconds=settings.drain_seconds)
    finally:
        await flights.close()
        await channel.close()
        await provider.close()


if __name__ == "__main__":
    chosen = Settings.read()
    process.run("translate", chosen, lambda stop: main(chosen, stop))
