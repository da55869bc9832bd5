"""What billing counts, for Prometheus."""

from prometheus_client import Counter, Gauge

HOLDS = Counter("backendai_holds_total", "Calls that set credits aside, by kind and outcome.", ("kind", "outcome"))
HOLDS_SETTLED = Counter("backendai_holds_settled_total", "Holds that were paid from, by kind.", ("kind",))
HOLDS_RELEASED = Counter("backendai_holds_released_total", "Holds that were given back unspent, the expired included.")
HOLDS_EXPIRED = Counter("backendai_holds_expired_total", "Holds that gave themselves back.")
HELD_CREDITS = Gauge("backendai_held_credits", "Credits set aside in all accounts; every replica tells the same.")
TOKENS = Counter(
    "backendai_tokens_total",
    "Tokens that were paid, by provider, model and direction.",
    ("provider", "model", "direction"),
)
AUDIO_SECONDS = Counter("backendai_audio_seconds_total", "Audio that was paid, in seconds.", ("provider", "model"))
CREDITS_CHARGED = Counter(
    "backendai_credits_charged_total", "Credits charged, by kind, provider and model.", ("kind", "provider", "model")
)
