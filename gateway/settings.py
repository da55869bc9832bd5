"""What the gateway is told."""

from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from services.kit.settings import ProcessSettings

SECRET_BYTES = 32


class Settings(ProcessSettings):
    """Read from the environment once, in `__main__`."""

    gateway_host: str = Field("127.0.0.1", description="The address to listen on.")
    gateway_port: int = Field(8080, ge=0, le=65_535, description="The TCP port to listen on; 0: any free one.")
    chat_address: str = Field("127.0.0.1:50051", description="gRPC target of chat.")
    billing_address: str = Field("127.0.0.1:50052", description="gRPC target of billing.")
    speech_address: str = Field("127.0.0.1:50054", description="gRPC target of speech.")
    translate_address: str = Field("127.0.0.1:50055", description="gRPC target of translate.")
    nats_url: str = Field("nats://127.0.0.1:4222", description="NATS; answers are slower without it, never wrong.")
    auth_jwt_secret: SecretStr | None = Field(
        None, min_length=SECRET_BYTES, description="The HS256 secret of development tokens, 32 bytes or more."
    )
    auth_jwks_url: str | None = Field(None, description="The issuer's keys, for RS256, ES256 and EdDSA tokens.")
    auth_issuer: str | None = Field(None, description="The `iss` a token must carry; any when unset.")
    auth_audience: str | None = Field(None, description="The `aud` a token must carry; any when unset.")
    cursor_secret: SecretStr = Field(
        min_length=SECRET_BYTES, description="Signs the cursors of lists, 32 bytes or more, the same for every gateway."
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

    @cached_property
    def providers(self) -> frozenset[str]:
        """The configured providers."""
        return frozenset(name.strip() for name in self.ai_providers.split(",") if name.strip())
