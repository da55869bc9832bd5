"""What every process counts, for Prometheus. A service's own figures are in its `metrics.py`.

Labels are words from short lists: methods, codes, providers, models of the price list. Never an id, never text.
"""

from prometheus_client import Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

GRPC_SERVER_SECONDS = Histogram(
    "backendai_grpc_server_duration_seconds",
    "gRPC calls answered, by method and code.",
    ("method", "code"),
    buckets=SECONDS,
)
PROVIDER_SECONDS = Histogram(
    "backendai_provider_call_duration_seconds",
    "Calls of AI providers, each try, by provider and code: ok, cancelled, or the error's.",
    ("provider", "code"),
    buckets=SECONDS,
)
