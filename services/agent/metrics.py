"""What the agent counts, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from services.kit.metrics import SECONDS

RUNS_RUNNING = Gauge("backendai_runs_running", "Runs under way in this process.")
RUN_SLOTS = Gauge("backendai_run_slots", "Runs that this process takes at once.")
RUN_SECONDS = Histogram(
    "backendai_run_duration_seconds",
    "Runs, by provider, framework and end: completed, cancelled, or the error's code.",
    ("provider", "framework", "end"),
    buckets=SECONDS,
)
FIRST_TOKEN_SECONDS = Histogram(
    "backendai_first_token_seconds",
    "From a call of the model to the first text it shows.",
    ("provider", "model"),
    buckets=SECONDS,
)
LEASES_LOST = Counter("backendai_leases_lost_total", "Runs that found out that another attempt had taken their place.")
