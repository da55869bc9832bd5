"""Whether the services that every request needs are there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.bus import Bus

PROBE_SECONDS = 1.0
Check = Callable[..., Awaitable[health_pb2.HealthCheckResponse]]


def _check(channel: grpc.aio.Channel) -> Check:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Check  # type: ignore[no-any-return]


class Health:
    """Asks the services' own health; NATS is reported, and not required."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], bus: Bus, draining: asyncio.Event) -> None:
        self._checks = {name: _check(channel) for name, channel in channels.items()}
        self._bus, self._draining = bus, draining

    async def check(self) -> tuple[bool, dict[str, str]]:
        """Whether the gateway can do its work now, and how each part is."""
        serving = await asyncio.gather(*(self._is_serving(check) for check in self._checks.values()))
        parts = {name: "serving" if up else "unreachable" for name, up in zip(self._checks, serving, strict=True)}
        parts["nats"] = "connected" if self._bus.connected else "disconnected"
        return all(serving) and not self._draining.is_set(), parts

    async def _is_serving(self, check: Check) -> bool:
        try:
            found = await check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(found.status == health_pb2.HealthCheckResponse.SERVING)
