"""structlog, set up once per process: one line per event, ids and sizes as fields, never text or tokens."""

import logging
import sys
import traceback

import structlog

from services.kit import telemetry

TRACE_FRAMES = 8


def configure(service: str, *, level: str, style: str) -> None:
    """Send structlog and the standard library's logging to standard output as JSON lines or as columns."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        telemetry.add_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    if style == "json":
        shared += [structlog.processors.format_exc_info]
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    severity = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(severity, logging.WARNING), force=True)
    structlog.contextvars.bind_contextvars(service=service)


def where(error: BaseException) -> dict[str, object]:
    """What broke and where, without the error's own words: they may quote a message, or a row that holds one."""
    frames = traceback.extract_tb(error.__traceback__)[-TRACE_FRAMES:]
    return {
        "error": type(error).__name__,
        "trace": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
