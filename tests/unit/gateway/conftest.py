"""The gateway's own app before fake services that are real gRPC servers on loopback."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import grpc
import httpx
import jwt
import pytest
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2
from backendai.speech.v1 import speech_pb2
from backendai.translate.v1 import translate_pb2
from google.protobuf.message import Message

from gateway.server import Gateway, listen
from gateway.settings import Settings
from services.kit.grpc_server import Server
from tests.servers import Nats, new_nats
from tests.unit.gateway.samples import SECRET, token

DEAD = "127.0.0.1:1"  # nobody listens there
REFUSING_NATS = "nats://127.0.0.1:1"


@dataclass
class FakeServices:
    """Every service: they answer what a test told them to, by the RPC's name, and remember what they were asked."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    address: str = ""

    def requests(self, name: str) -> list[Any]:
        """What one RPC was asked, in order."""
        return [request for asked, request in self.asked if asked == name]

    async def answer(self, name: str, empty: Callable[[], Message], request: Any, context: Any) -> Any:
        """A message, an exception to raise, or a function of the request that gives one of them."""
        self.asked.append((name, request))
        found = self.answers.get(name, empty)
        if callable(found):
            found = found() if found is empty else found(request)
        if inspect.isawaitable(found):
            found = await found
        if isinstance(found, grpc.StatusCode):
            await context.abort(found, "text of a driver that nobody may see")
        if isinstance(found, Exception):
            raise found
        return found

    async def answer_stream(
        self, name: str, empty: Callable[[], Message], requests: AsyncIterator[Message], context: Any
    ) -> Any:
        """As `answer`, once the stream has ended; the request is all of its messages."""
        await context.send_initial_metadata((("send-the-file", "1"),))
        return await self.answer(name, empty, [request async for request in requests], context)

    def handlers(self, module: ModuleType, service: str) -> grpc.GenericRpcHandler:
        """Every method of a service."""
        described = module.DESCRIPTOR.services_by_name[service]
        methods = {}
        for method in described.methods:
            takes, gives = getattr(module, method.input_type.name), getattr(module, method.output_type.name)
            if method.client_streaming:
                methods[method.name] = grpc.stream_unary_rpc_method_handler(
                    partial(self.answer_stream, method.name, gives),
                    request_deserializer=takes.FromString,
                    response_serializer=gives.SerializeToString,
                )
                continue
            methods[method.name] = grpc.unary_unary_rpc_method_handler(
                partial(self.answer, method.name, gives),
                request_deserializer=takes.FromString,
                response_serializer=gives.SerializeToString,
            )
        return grpc.method_handlers_generic_handler(described.full_name, methods)


@asynccontextmanager
async def fake_services() -> AsyncIterator[FakeServices]:
    """One server that is every service."""
    fake, server = FakeServices(), Server("127.0.0.1:0")
    server.grpc.add_generic_rpc_handlers(
        (
            fake.handlers(chat_pb2, "ChatService"),
            fake.handlers(billing_pb2, "BillingService"),
            fake.handlers(speech_pb2, "SpeechService"),
            fake.handlers(translate_pb2, "TranslateService"),
        )
    )
    port = server.grpc.add_insecure_port("127.0.0.1:0")
    await server.grpc.start()
    await server.set_ready(True)
    fake.address = f"127.0.0.1:{port}"
    yield fake
    await server.grpc.stop(None)


@pytest.fixture
async def services() -> AsyncIterator[FakeServices]:
    async with fake_services() as fake:
        yield fake


def settings_for(address: str, **changes: Any) -> Settings:
    """Settings that no environment reaches."""
    chosen: dict[str, Any] = {
        "gateway_port": 0,
        "chat_address": address,
        "billing_address": address,
        "speech_address": address,
        "translate_address": address,
        "nats_url": REFUSING_NATS,
        "auth_jwt_secret": SECRET,
        "cursor_secret": "c" * 32,
        "ai_providers": "local,google",
        "agent_sync_timeout_s": 5,
        "drain_seconds": 0,
        **changes,
    }
    return Settings(**chosen)


@pytest.fixture
async def gateway(services: FakeServices) -> AsyncIterator[Gateway]:
    """Not started: NATS is down."""
    gateway = Gateway(settings_for(services.address))
    yield gateway
    await gateway.close()


def client_of(gateway: Gateway, **claims: Any) -> httpx.AsyncClient:
    """Speaks to the app itself, as alice, owner of the workspace, unless the claims say otherwise."""
    headers = {"Authorization": f"Bearer {token(**claims)}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway", headers=headers)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(gateway) as client:
        yield client


@pytest.fixture
async def guest(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Someone whose token names no workspace."""
    async with client_of(gateway, sub="guest", workspaces={}) as client:
        yield client


@asynccontextmanager
async def served(gateway: Gateway) -> AsyncIterator[int]:
    """The gateway on a port of its own, as the process serves it."""
    listener, stop = listen("127.0.0.1", 0), asyncio.Event()
    port: int = listener.getsockname()[1]
    serving = asyncio.create_task(gateway.serve(listener, stop))
    try:
        yield port
    finally:
        stop.set()
        await serving


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    with new_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def listening(services: FakeServices, nats_server: Nats) -> AsyncIterator[Gateway]:
    """A gateway that is connected to NATS."""
    gateway = Gateway(settings_for(services.address, nats_url=nats_server.url))
    gateway.start()
    await until(lambda: gateway.bus.connected)
    yield gateway
    await gateway.close()


async def until(holds: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for a condition."""
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def unsigned(header: str, claims: str) -> str:
    """A token of these JSON texts, signed rightly: what an issuer gone wrong might send."""
    encoded = jwt.utils.base64url_encode
    signed = encoded(header.encode()) + b"." + encoded(claims.encode())
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signed, SECRET.encode())
    return (signed + b"." + encoded(signature)).decode()
