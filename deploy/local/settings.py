"""What `make up` is told, by the environment or by a file .env in the project's folder; the environment wins."""

import os
from pathlib import Path
from typing import Literal, Self

import dotenv
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from deploy.local.problem import Problem
from services.kit.settings import ApiKey, TrimmedSettings

ROOT = Path(__file__).parents[2]

# In the order in which a key makes its provider the default, each with the small model that then answers.
DEFAULT_MODELS = {
    "openai": "gpt-4.1-mini",
    "google": "gemini-2.5-flash",
    "anthropic": "claude-haiku-4-5",
    "groq": "openai/gpt-oss-20b",
    "deepseek": "deepseek-flash",
}

# The providers that can translate, in the order in which a key makes one the default.
TRANSLATORS = ("openai", "google")


class Settings(TrimmedSettings):
    """The knobs of the runner. What only a service reads passes through untouched."""

    gateway_host: str = Field("127.0.0.1", description="The address the gateway listens on.")
    gateway_port: int = Field(
        8080, ge=1, le=65535, description="The first gateway's port; each further one takes the next."
    )
    data_dir: Path = Field(Path(".data"), description="The folder that keeps the state, from the project's folder.")
    database_url: str | None = Field(None, description="A PostgreSQL to use instead of the embedded one.")
    nats_url: str | None = Field(None, description="A NATS with JetStream to use instead of the embedded one.")
    local_base_url: str | None = Field(
        None, description="An OpenAI-compatible server to use instead of the embedded model."
    )

    auth_jwt_secret: SecretStr | None = Field(
        None, min_length=32, description="The HS256 secret; one is made and kept when unset."
    )
    auth_jwks_url: str | None = Field(None, description="The issuer's keys; no token is made here when set.")
    auth_issuer: str | None = Field(None, description="The `iss` of the tokens made here.")
    auth_audience: str | None = Field(None, description="The `aud` of the tokens made here.")
    cursor_secret: SecretStr | None = Field(
        None, min_length=32, description="Signs the list cursors; one is made and kept when unset."
    )

    openai_api_key: ApiKey | None = None
    google_api_key: ApiKey | None = None
    anthropic_api_key: ApiKey | None = None
    groq_api_key: ApiKey | None = None
    deepseek_api_key: ApiKey | None = None
    ai_providers: str | None = Field(
        None, description="The providers that are configured; those with a key, and local, when unset."
    )
    default_ai_provider: str | None = Field(None, description="The provider of a session that names none.")
    default_ai_model: str | None = Field(None, description="The model of a session that names none.")
    translate_provider: Literal["openai", "google", "placeholder"] | None = Field(
        None, description="Who translates; the first one with a key when unset."
    )

    speech_provider: Literal["openai", "local"] | None = Field(
        None, description="Who transcribes; openai with its key, else local, when unset."
    )
    speech_local_base_url: str | None = Field(
        None, description="A server of OpenAI's transcriptions to use instead of the embedded recogniser."
    )

    gateways: int = Field(1, ge=1, le=16, description="How many gateways run.")
    chats: int = Field(1, ge=1, le=16, description="How many chat processes run.")
    billings: int = Field(1, ge=1, le=16, description="How many billing processes run.")
    agents: int = Field(1, ge=1, le=16, description="How many agents run.")
    speeches: int = Field(1, ge=1, le=16, description="How many speech processes run.")
    translates: int = Field(1, ge=1, le=16, description="How many translate processes run.")

    grpc_tls_dir: Path | None = Field(
        None, description="A folder with a folder of certificates for each service, as make certs makes it."
    )
    ops_listen: str | None = Field(
        None,
        pattern=r"^.+:\d{1,5}$",
        description="Where the first process tells metrics and health, host:port; each further one takes the next.",
    )
    log_level: str = Field("info", description="debug shows what PostgreSQL and NATS say, too.")

    @model_validator(mode="after")
    def _one_way_to_know_a_caller(self) -> Self:
        if self.auth_jwt_secret and self.auth_jwks_url:
            raise ValueError("set AUTH_JWKS_URL or AUTH_JWT_SECRET, not both")
        return self

    @model_validator(mode="after")
    def _the_translator_has_a_key(self) -> Self:
        if self.translate_provider in TRANSLATORS and self.translate_provider not in self.keyed_providers:
            raise ValueError(
                f"TRANSLATE_PROVIDER={self.translate_provider} needs {self.translate_provider.upper()}_API_KEY"
            )
        return self

    @model_validator(mode="after")
    def _openai_transcribes_with_its_key(self) -> Self:
        if self.speech_provider == "openai" and self.openai_api_key is None:
            raise ValueError("SPEECH_PROVIDER=openai needs OPENAI_API_KEY")
        return self

    @field_validator("grpc_tls_dir")
    @classmethod
    def _every_service_has_a_certificate(cls, folder: Path | None) -> Path | None:
        if folder is not None and not (folder / "gateway" / "tls.crt").exists():
            raise ValueError("it has no folder of certificates for each service: make certs makes one")
        return folder

    @classmethod
    def read(cls) -> Self:
        """The settings, or a Problem that names what is wrong with them."""
        dotenv.load_dotenv(ROOT / ".env")
        try:
            return cls()
        except ValidationError as error:
            wrong = [": ".join([*(str(part).upper() for part in e["loc"]), e["msg"]]) for e in error.errors()]
            raise Problem(f"A setting is wrong. {'; '.join(wrong)}.") from error

    @property
    def data(self) -> Path:
        """The data directory, absolute."""
        return (ROOT / self.data_dir).resolve()

    @property
    def keyed_providers(self) -> list[str]:
        """The providers with a key."""
        return [name for name in DEFAULT_MODELS if getattr(self, f"{name}_api_key")]

    @property
    def translator(self) -> str:
        """Who translates; `placeholder` translates nothing and says so."""
        return self.translate_provider or next((n for n in TRANSLATORS if n in self.keyed_providers), "placeholder")

    @property
    def transcriber(self) -> str:
        """Who transcribes: openai or local."""
        return self.speech_provider or ("openai" if self.openai_api_key else "local")

    @property
    def providers(self) -> str:
        """AI_PROVIDERS: what is configured."""
        return self.ai_providers or ",".join([*self.keyed_providers, "local"])


def inherited() -> dict[str, str]:
    """The environment without its blank variables, which count as unset."""
    return {name: value for name, value in os.environ.items() if value.strip()}
