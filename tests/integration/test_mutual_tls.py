"""Mutual TLS between processes: each method takes the services that its proto names, and nobody else."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2
from backendai.common.v1 import common_pb2
from backendai.speech.v1 import speech_pb2
from backendai.translate.v1 import translate_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local import certs
from services.kit.grpc_errors import reason_of
from services.kit.tls import Tls
from tests.integration.stack import Stack

MODULES = {"billing": billing_pb2, "chat": chat_pb2, "speech": speech_pb2, "translate": translate_pb2}
METHODS = [
    pytest.param(callee, method, id=f"{service.name}.{method.name}")
    for callee, module in MODULES.items()
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def channel(stack: Stack, callee: str, folder: Path | None) -> grpc.aio.Channel:
    """To one of a service's processes, with the certificate in a folder, or none."""
    target = stack.grpc_addresses[f"{callee}0"]
    options = (("grpc.ssl_target_name_override", callee), ("grpc.enable_retries", 0))
    if folder is None:
        assert stack.certificates is not None
        authority = (stack.certificates / callee / "ca.crt").read_bytes()
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(authority), options=options)
    return grpc.aio.secure_channel(target, Tls(folder).channel_credentials(), options=options)


async def refusal(stack: Stack, callee: str, method: MethodDescriptor, folder: Path) -> str:
    """Why an empty request is refused, as a reason or else a code; "" when it is answered."""
    async with channel(stack, callee, folder) as dialled:
        make: Any = dialled.stream_unary if method.client_streaming else dialled.unary_unary
        service = method.containing_service.full_name
        call = make(
            f"/{service}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        empty = GetMessageClass(method.input_type)()
        try:
            await call(iter([empty]) if method.client_streaming else empty, timeout=10)
        except grpc.aio.AioRpcError as error:
            return reason_of(error) or error.code().name
        return ""


@pytest.mark.parametrize(("callee", "method"), METHODS)
async def test_a_method_takes_the_services_that_its_proto_names_and_no_other(
    pair: Stack, callee: str, method: MethodDescriptor
) -> None:
    assert pair.certificates is not None
    allowed = set(method.GetOptions().Extensions[common_pb2.callers])
    taken = {
        service
        for service in certs.SERVICES
        if await refusal(pair, callee, method, pair.certificates / service) != "CALLER_NOT_ALLOWED"
    }
    assert taken == allowed


async def health(stack: Stack, folder: Path | None) -> str:
    async with channel(stack, "chat", folder) as dialled:
        try:
            stub: Any = health_pb2_grpc.HealthStub(dialled)
            found = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)


async def test_whoever_has_a_certificate_may_ask_for_health_and_nobody_else(pair: Stack) -> None:
    assert pair.certificates is not None
    assert await health(pair, pair.certificates / "translate") == "SERVING"
    assert await health(pair, None) == "UNAVAILABLE"


async def test_a_certificate_of_another_authority_is_nobodys(pair: Stack, tmp_path: Path) -> None:
    certs.write_all(tmp_path, ["gateway"])
    assert pair.certificates is not None
    authority = (pair.certificates / "gateway" / "ca.crt").read_text()
    (tmp_path / "gateway" / "ca.crt").write_text(authority)
    assert await health(pair, tmp_path / "gateway") == "UNAVAILABLE"


def serial_number(stack: Stack, process: str) -> str:
    """Of the certificate that a process shows."""
    assert stack.certificates is not None
    folder = stack.certificates / "gateway"
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.set_alpn_protocols(["h2"])
    host, _, port = stack.grpc_addresses[process].rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname=process.rstrip("0123456789")) as secured,
    ):
        return str((secured.getpeercert() or {})["serialNumber"])


async def test_a_renewed_certificate_is_shown_without_a_restart_and_no_request_notices(pair: Stack) -> None:
    assert pair.certificates is not None
    processes = [process for process in pair.grpc_addresses if process.rstrip("01") in MODULES]
    before = [serial_number(pair, process) for process in processes]
    async with pair.user() as alice:
        session = await alice.new_session()
        certs.write_all(pair.certificates, authority=pair.authority)
        assert (await alice.say(session)).status_code == 201
        after = [serial_number(pair, process) for process in processes]
        assert not set(before) & set(after)
        assert (await alice.say(session)).status_code == 201
