"""An OpenTelemetry collector on loopback that keeps what it is sent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

from deploy.local.server import LOOPBACK, free_port


@dataclass(frozen=True, slots=True)
class Span:
    """One span as it was exported; ids are hexadecimal, `parent_id` is empty for the first of a trace."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    failed: str
    attributes: dict[str, Any]


class Collector(rpc.TraceServiceServicer):
    """Takes OTLP over gRPC while the block runs."""

    def __init__(self) -> None:
        address = f"{LOOPBACK}:{free_port()}"
        self.url = f"http://{address}"
        self.raw: list[bytes] = []
        """Every request as it came, to be searched for what must not be in it."""
        self._requests: list[pb.ExportTraceServiceRequest] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_insecure_port(address)
        rpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]

    def Export(
        self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        self.raw.append(request.SerializeToString())
        self._requests.append(request)
        return pb.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        """All of them."""
        return [
            _span(service, span)
            for request in list(self._requests)
            for resource in request.resource_spans
            for service in [_attributes(resource.resource.attributes)["service.name"]]
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()


def _span(service: str, span: Any) -> Span:
    return Span(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        failed=span.status.message,
        attributes=_attributes(span.attributes),
    )


def _attributes(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
