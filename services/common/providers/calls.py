"""One call of a provider as a span and a measurement."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import structlog

from services.common.providers.errors import ProviderError, ProviderNoMoney
from services.kit import telemetry
from services.kit.errors import DomainError
from services.kit.metrics import PROVIDER_SECONDS
from services.kit.telemetry import Span, SpanKind

log = structlog.get_logger()

# An alert watches each of these, so they are counted from 0 on: the first failure is an increase.
_ALERTED = ("provider_auth_failed", ProviderNoMoney.outcome)


@contextmanager
def provider_call(provider: str, model: str, operation: str) -> Iterator[Span]:
    """Trace and measure one try, by OpenTelemetry's conventions for GenAI. Records no content."""
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
    }
    outcome, began_at = "ok", time.perf_counter()
    with telemetry.span(f"{operation} {model}", SpanKind.CLIENT, attributes=attributes) as span:
        try:
            yield span
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        except Exception as error:
            outcome = outcome_of(error)
            telemetry.fail(span, outcome)
            if isinstance(error, ProviderNoMoney):
                log.error("provider_no_money", provider=provider, model=model)
            raise
        finally:
            PROVIDER_SECONDS.labels(provider, outcome).observe(time.perf_counter() - began_at)


def count_from_zero(providers: Iterable[str]) -> None:
    """Create the counters that alerts watch, for each provider."""
    for provider in providers:
        for outcome in _ALERTED:
            PROVIDER_SECONDS.labels(provider, outcome)


def outcome_of(error: Exception) -> str:
    """The name of a failure in metrics and traces."""
    if isinstance(error, ProviderError):
        return error.outcome
    return error.reason.lower() if isinstance(error, DomainError) else type(error).__name__
