"""What chat counts, for Prometheus. Gauges are read from Postgres: every replica tells the same, so take the max."""

from prometheus_client import Counter, Gauge

TASKS = Gauge("backendai_tasks", "Tasks that are queued, running, or ended and not settled.", ("state",))
OLDEST_QUEUED_SECONDS = Gauge("backendai_oldest_queued_task_seconds", "How long the oldest queued task waits; 0: none.")
TASKS_ENDED = Counter(
    "backendai_tasks_ended_total", "Tasks ended by this process, by state and error code.", ("state", "code")
)
LEASES_EXPIRED = Counter("backendai_leases_expired_total", "Leases whose agent fell silent.")
STALE_WRITES = Counter("backendai_stale_writes_total", "Writes of attempts that were over, refused.")
SETTLEMENTS_POSTPONED = Counter(
    "backendai_settlements_postponed_total", "Ended tasks whose settlement had to wait for billing or Postgres."
)
