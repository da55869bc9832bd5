"""The base of every process's settings: read from the environment once, in `__main__`, and frozen."""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class ProcessSettings(BaseSettings):
    """What every process is told."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    log_level: str = Field("info", description="The least severe event that is logged: debug, info, warning, error.")
    log_format: str = Field("json", description="json: one object a line; console: columns for people.")
    drain_seconds: float = Field(10.0, ge=0, description="How long SIGTERM waits for calls in flight, in seconds.")
    ops_listen: str | None = Field(
        None, description="Where /metrics, /healthz and /readyz are, host:port; nowhere when unset."
    )
    grpc_tls_dir: Path | None = Field(
        None, description="A folder with tls.crt, tls.key and ca.crt: mutual TLS between the services; none when unset."
    )
    grpc_reflection: bool = Field(
        False, description="Whether gRPC servers describe their methods to whoever asks; for development."
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="An OpenTelemetry collector (OTLP over gRPC) that gets the traces; none are made when unset."
    )
    otel_traces_sampler_arg: float = Field(
        1.0, ge=0, le=1, description="The share of the traces begun here that are kept, 0 to 1."
    )

    @classmethod
    def read(cls) -> Self:
        """From the environment. What is wrong there ends the process with a line for each setting, never its value."""
        try:
            return cls()
        except ValidationError as error:
            wrong = (
                (".".join(map(str, one["loc"])).upper(), one["msg"].removeprefix("Value error, "))
                for one in error.errors(include_input=False)
            )
            raise SystemExit("\n".join(f"{name}: {text}." if name else f"{text}." for name, text in wrong)) from None
