"""The base of every process's settings: read from the environment once, in `__main__`, and frozen."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict


def _fits_a_header(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise PydanticCustomError(
            "api_key", "A key has printable ASCII characters only: copy it again, without line ends"
        )
    return key


ApiKey = Annotated[SecretStr, AfterValidator(_fits_a_header)]
"""A key that is sent in an HTTP header."""


class TrimmedSettings(BaseSettings):
    """Settings without the white space around a value. A value that is blank counts as unset.

    A .env file with CRLF line ends and `echo key | base64` in a Kubernetes Secret leave a line end behind each value.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _trim(cls, values: dict[str, Any]) -> dict[str, Any]:
        trimmed = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in trimmed.items() if value != ""}


class ProcessSettings(TrimmedSettings):
    """What every process is told."""

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
        """Read the environment. A wrong setting ends the process with a line that has its name, never its value."""
        try:
            return cls()
        except ValidationError as error:
            wrong = (
                (".".join(map(str, one["loc"])).upper(), one["msg"].removeprefix("Value error, "))
                for one in error.errors(include_input=False)
            )
            raise SystemExit("\n".join(f"{name}: {text}." if name else f"{text}." for name, text in wrong)) from None
