"""Connections between services end now and then, so that clients find new replicas; no call notices."""

import asyncio
import time
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.server import free_port
from services.kit.grpc_client import dial
from services.kit.grpc_server import OPTIONS, Server

AGES = (("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 5_000))
SECONDS = 1.5


async def test_calls_go_on_while_connections_end() -> None:
    server = Server(f"127.0.0.1:{free_port()}", options=AGES)
    await server.start()
    channel = dial(server.listen, "chat")
    make: Any = health_pb2_grpc.HealthStub
    stub = make(channel)
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=2, wait_for_ready=True)
    until = time.monotonic() + SECONDS

    async def keep_asking() -> int:
        answers = 0
        while time.monotonic() < until:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            answers += 1
        return answers

    assert min(await asyncio.gather(*(keep_asking() for _ in range(8)))) > 0
    await channel.close()
    await server.drain(0)


def test_connections_end_and_calls_of_ten_minutes_do_not() -> None:
    options = dict(OPTIONS)
    assert 0 < options["grpc.max_connection_age_ms"] <= 300_000
    assert options["grpc.max_connection_age_grace_ms"] >= 600_000
