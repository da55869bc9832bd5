"""What the gateway is told."""

import re
from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from gateway.cors import ANY_ORIGIN
from services.kit.nats_url import NatsUrl
from services.kit.settings import ProcessSettings

SECRET_BYTES = 32
ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?"
)
DEFAULT_PORTS = {"http": "80", "https": "443"}
MAX_PORT = 65_535


class Settings(ProcessSettings):
    """Read from the environment once, in `__main__`."""

    gateway_host: str = Field("127.0.0.1", description="The address to listen on.")
    gateway_port: int = Field(8080, ge=0, le=MAX_PORT, description="The TCP port to listen on; 0: any free one.")
    chat_address: str = Field("127.0.0.1:50051", description="gRPC target of chat.")
    billing_address: str = Field("127.0.0.1:50052", description="gRPC target of billing.")
    speech_address: str = Field("127.0.0.1:50054", description="gRPC target of speech.")
    translate_address: str = Field("127.0.0.1:50055", description="gRPC target of translate.")
    nats_url: NatsUrl = Field("nats://127.0.0.1:4222", description="NATS; answers are slower without it, never wrong.")
    auth_jwt_secret: SecretStr | None = Field(
        None, min_length=SECRET_BYTES, description="The HS256 secret of development tokens, 32 bytes or more."
    )
    auth_jwks_url: str | None = Field(None, description="The issuer's keys, for RS256, ES256 and EdDSA tokens.")
    auth_issuer: str | None = Field(None, description="The `iss` a token must carry; any when unset.")
    auth_audience: str | None = Field(None, description="The `aud` a token must carry; any when unset.")
    cursor_secret: SecretStr = Field(
        min_length=SECRET_BYTES, description="Signs the cursors of lists, 32 bytes or more, the same for every gateway."
    )
    cors_allowed_origins: str = Field(
        "", description="The origins whose pages may call the API, comma separated, or *; none when empty."
    )
    agent_async_enabled: bool = Field(False, description="True: a send answers 202 at once; `Prefer` overrides it.")
    agent_sync_timeout_s: float = Field(
        60, gt=0, le=3_600, description="How long a send waits before it answers 202 instead, in seconds."
    )
    speech_timeout_s: float = Field(
        180, gt=0, le=3_600, description="How long the provider of a transcription may take, in seconds."
    )
    translate_timeout_s: float = Field(
        60, gt=0, le=600, description="How long the provider of a translation may take, in seconds."
    )
    ai_providers: Annotated[str, NoDecode] = Field("", description="The providers that have a key, comma separated.")
    default_ai_provider: str = Field("local", description="The provider of a session that names none.")
    default_ai_model: str = Field("smollm2-135m-instruct", description="The model of a session that names none.")

    @model_validator(mode="after")
    def _one_way_to_know_a_caller(self) -> Self:
        if (self.auth_jwt_secret is None) == (self.auth_jwks_url is None):
            raise ValueError("set AUTH_JWKS_URL (production) or AUTH_JWT_SECRET (development), and not both")
        return self

    @field_validator("cors_allowed_origins")
    @classmethod
    def _origins_as_browsers_send_them(cls, text: str) -> str:
        if not all(origin == ANY_ORIGIN or _is_origin(origin) for origin in _comma_list(text)):
            raise ValueError(
                "write each origin as browsers send it: scheme://host or scheme://host:port in lower case, "
                "such as https://app.example.com, without a path, a final slash or the scheme's default port"
            )
        return text

    @cached_property
    def origins(self) -> frozenset[str]:
        """The origins that CORS allows, as browsers send them."""
        return frozenset(_comma_list(self.cors_allowed_origins))

    @cached_property
    def providers(self) -> frozenset[str]:
        """The configured providers."""
        return frozenset(_comma_list(self.ai_providers))


def _comma_list(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def _is_origin(text: str) -> bool:
    """Whether a browser could send this as Origin. What none sends would be allowed in vain."""
    found = ORIGIN.fullmatch(text)
    if found is None or found["port"] is None:
        return found is not None
    return int(found["port"]) <= MAX_PORT and found["port"] != DEFAULT_PORTS.get(found["scheme"])
