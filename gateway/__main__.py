"""The gateway process: `python -m gateway`."""

import asyncio

from gateway.server import Gateway, listen
from gateway.settings import Settings
from services.kit import process


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Bind, and serve until `stop`."""
    listener = listen(settings.gateway_host, settings.gateway_port)
    await Gateway(settings).serve(listener, stop)


if __name__ == "__main__":
    chosen = Settings.read()
    process.run("gateway", chosen, lambda stop: main(chosen, stop))
