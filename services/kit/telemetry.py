"""Traces with OpenTelemetry: one for each turn, from the request through gRPC and NATS to the provider.

Off, and next to free, until `configure` is given a collector. A span has a name that is known beforehand, and ids,
words and sizes as attributes; never text, and no error's own words, which may quote some.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Link, Status, StatusCode, Tracer
from opentelemetry.trace import Span as Span
from opentelemetry.trace import SpanKind as SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.kit.http_client import is_loopback

EXPORT_TIMEOUT_SECONDS = 5
FLUSH_MILLISECONDS = 2_000
TRACEPARENT = "traceparent"
# Codes of gRPC that stand for a failure of the callee.
FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

# gRPC takes http_proxy from the environment, for loopback too.
_DIRECT: Any = (("grpc.enable_http_proxy", 0),)

_propagator = TraceContextTextMapPropagator()
_tracer: Tracer | None = None


def configure(service: str, *, endpoint: str | None, share: float) -> None:
    """Send this process's spans to a collector, OTLP over gRPC, a share of the traces that begin here; None: no traces.

    A collector that is away costs spans, a warning, and at the end of the process up to 5 s for the last ones.
    """
    global _tracer
    if endpoint is None:
        return
    # Here, since without a collector the SDK is 20 MB for nothing.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(share)),
        resource=Resource.create({"service.name": service, "service.namespace": "backendai-chat"}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(
        endpoint,
        insecure=endpoint.startswith("http://"),
        timeout=EXPORT_TIMEOUT_SECONDS,
        channel_options=_DIRECT if is_loopback(endpoint) else None,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    atexit.register(provider.force_flush, FLUSH_MILLISECONDS)
    _tracer = provider.get_tracer("backendai")


def tracing() -> bool:
    """Whether spans are made at all."""
    return _tracer is not None


def begin(
    name: str,
    kind: SpanKind,
    *,
    parent: str = "",
    links: Sequence[str] = (),
    attributes: Mapping[str, Any] | None = None,
    starts_trace: bool = False,
) -> Span:
    """A span that its caller ends: below the traceparent given, else below the current span.

    Without either it is none at all, unless it starts a trace: only a request from outside does, and work for several
    traces at once, whose traceparents are its `links`. So heartbeats and other chores leave no traces of one span each.
    """
    if _tracer is None:
        return INVALID_SPAN
    context = _propagator.extract({TRACEPARENT: parent}) if parent else None
    if not starts_trace and not trace.get_current_span(context).get_span_context().is_valid:
        return INVALID_SPAN
    linked = [Link(_span_context(link)) for link in links]
    return _tracer.start_span(name, context, kind, attributes=attributes, links=linked)


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: str = "",
    links: Sequence[str] = (),
    attributes: Mapping[str, Any] | None = None,
    starts_trace: bool = False,
) -> Iterator[Span]:
    """A span as `begin` makes it, as long as the block and the current one within it. `fail` tells its failure."""
    begun = begin(name, kind, parent=parent, links=links, attributes=attributes, starts_trace=starts_trace)
    if begun is INVALID_SPAN:
        yield begun
        return
    with trace.use_span(begun, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        yield begun


@contextmanager
def batch(name: str, parents: Sequence[str], kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
    """A span of work that is done at once for several traces: in the trace of a single one, else linked to all."""
    traced = [parent for parent in parents if parent]
    one = traced[0] if len(traced) == 1 else ""
    attributes = {"backendai.batch_size": len(parents)}
    links = () if one else traced
    with span(name, kind, parent=one, links=links, attributes=attributes, starts_trace=bool(traced)) as begun:
        yield begun


def fail(failed: Span, word: str) -> None:
    """Mark a span as failed; the word says why. Example: provider_timeout."""
    failed.set_status(Status(StatusCode.ERROR, word))
    failed.set_attribute("error.type", word)


def sql(statement: str) -> Mapping[str, str] | None:
    """The attributes of a statement's span: its text, which has placeholders where its values go."""
    return {"db.system.name": "postgresql", "db.query.text": statement} if _tracer is not None else None


def end_call(called: Span, code: str) -> None:
    """Say how a gRPC call has ended. What its caller is at fault for is no failure."""
    called.set_attribute("rpc.grpc.status_code", code)
    if code in FAULTS:
        fail(called, code)


def traceparent(of: Span | None = None) -> str:
    """A span's place in its trace, the current span's by default, as W3C Trace Context writes it; "" without one."""
    return headers(of).get(TRACEPARENT, "")


def headers(of: Span | None = None) -> dict[str, str]:
    """What a request or message carries on to where the trace goes on; nothing when there is none."""
    carrier: dict[str, str] = {}
    if _tracer is not None:
        _propagator.inject(carrier, None if of is None else trace.set_span_in_context(of))
    return carrier


def add_trace(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For structlog: a line that is logged within a span tells which."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _span_context(parent: str) -> trace.SpanContext:
    return trace.get_current_span(_propagator.extract({TRACEPARENT: parent})).get_span_context()
