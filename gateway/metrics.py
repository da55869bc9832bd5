"""What the gateway counts, for Prometheus."""

from prometheus_client import Gauge, Histogram

from services.kit.metrics import SECONDS

HTTP_SECONDS = Histogram(
    "backendai_http_request_duration_seconds",
    "Requests, until their answer begins, by method, route and status.",
    ("method", "route", "status"),
    buckets=SECONDS,
)
STREAMS = Gauge("backendai_http_streams", "Event streams that are open.")
