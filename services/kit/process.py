"""How a process lives: uvloop, one main coroutine, SIGTERM and SIGINT as one stop event."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from services.kit import logs, telemetry
from services.kit.http_client import UnsupportedProxy
from services.kit.settings import ProcessSettings

log = structlog.get_logger()


def run(service: str, settings: ProcessSettings, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `main(stop)` until it returns; `stop` is set by the first SIGTERM or SIGINT.

    A proxy in the environment that can't be used ends the process with a line that names the variable.
    """
    logs.configure(service, level=settings.log_level, style=settings.log_format)
    telemetry.configure(service, endpoint=settings.otel_exporter_otlp_endpoint, share=settings.otel_traces_sampler_arg)
    try:
        uvloop.run(_until_stopped(main))
    except UnsupportedProxy as error:
        raise SystemExit(str(error)) from None


async def _until_stopped(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await main(stop)
    log.info("stopped")
