"""gRPC servers describe themselves where that is switched on."""

from typing import Any

import grpc
from backendai.speech.v1 import speech_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.local.server import free_port
from services.kit.grpc_client import dial
from services.kit.grpc_server import Server


async def described(server: Server) -> set[str]:
    """The services that the server tells of."""
    await server.start()
    channel = dial(server.listen, "speech")
    make: Any = reflection_pb2_grpc.ServerReflectionStub
    stub = make(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    try:
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]), wait_for_ready=True)]
        return {service.name for answer in answers for service in answer.list_services_response.service}
    except grpc.aio.AioRpcError as error:
        return {error.code().name}
    finally:
        await channel.close()
        await server.drain(0)


async def test_reflection_tells_the_services_of_the_process() -> None:
    names = await described(Server(f"127.0.0.1:{free_port()}", reflects=speech_pb2.DESCRIPTOR))
    assert names == {
        "backendai.speech.v1.SpeechService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_it_is_off_unless_it_is_switched_on() -> None:
    assert await described(Server(f"127.0.0.1:{free_port()}")) == {"UNIMPLEMENTED"}
