"""A server that drains is not ready any more, whatever its service finds meanwhile."""

import asyncio
from typing import Any

import grpc
import httpx

from deploy.local.server import free_port
from services.kit.grpc_client import dial
from services.kit.grpc_server import Server


async def test_a_draining_server_is_not_made_ready_again() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def linger(_request: bytes, _context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        begun.set()
        await may_end.wait()
        return b""

    ops = f"127.0.0.1:{free_port()}"
    server = Server(f"127.0.0.1:{free_port()}", ops_listen=ops)
    handler: Any = grpc.unary_unary_rpc_method_handler(linger)
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Slow", {"Linger": handler}),))
    await server.start()
    channel = dial(server.listen, "chat")
    call: Any = channel.unary_unary("/test.Slow/Linger")
    calling = asyncio.ensure_future(call(b"", wait_for_ready=True))
    await begun.wait()
    draining = asyncio.create_task(server.drain(10))
    await asyncio.sleep(0)
    await server.set_ready(True)
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://{ops}/readyz")).status_code == 503
    may_end.set()
    await calling
    await draining
    await channel.close()
