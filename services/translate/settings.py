"""What the translate service is told."""

import logging
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from services.kit.settings import ApiKey, ProcessSettings

ProviderName = Literal["openai", "google", "placeholder"]

DEFAULT_MODELS: dict[ProviderName, str] = {
    "openai": "gpt-4.1-mini",
    "google": "gemini-3.5-flash-lite",
    "placeholder": "echo",
}
# Their debug lines hold requests and answers.
_TALKATIVE_LOGGERS = ("openai", "httpx2", "httpcore2", "google_genai")


class Settings(ProcessSettings):
    """Read from the environment once, in `__main__`."""

    translate_listen: str = Field("127.0.0.1:50055", description="The address the gRPC server binds, host:port.")
    billing_address: str = Field("127.0.0.1:50052", description="gRPC target of billing.")
    translate_provider: ProviderName | None = Field(
        None, description="openai, google or placeholder; the first one with a key when unset."
    )
    translate_model: str | None = Field(None, max_length=100, description="The model; a small one when unset.")
    translate_timeout_s: float = Field(
        60, gt=0, le=600, description="How long the provider may take, its repeated tries included, in seconds."
    )
    translate_concurrency: int = Field(
        64, ge=1, le=1_000, description="Translations a process has under way, at most; more are refused with 503."
    )
    translate_cache_mib: int = Field(
        64, ge=1, le=4_096, description="Memory of a process for translations it has made, in MiB."
    )
    translate_cache_ttl_s: float = Field(3_600, gt=0, description="How long a translation is kept, in seconds.")

    openai_api_key: ApiKey | None = Field(None, description="OpenAI's key.")
    openai_base_url: str | None = Field(None, description="Another server that speaks OpenAI's API.")
    google_api_key: ApiKey | None = Field(None, description="The key of Google's Gemini API.")
    google_base_url: str | None = Field(None, description="Another server that speaks Gemini's API.")

    @model_validator(mode="after")
    def _the_provider_has_a_key(self) -> Self:
        if self.provider != "placeholder" and self.key_of(self.provider) is None:
            raise ValueError(f"TRANSLATE_PROVIDER={self.provider} needs {self.provider.upper()}_API_KEY")
        return self

    def key_of(self, provider: ProviderName) -> SecretStr | None:
        """A provider's key."""
        return {"openai": self.openai_api_key, "google": self.google_api_key}.get(provider)

    @property
    def provider(self) -> ProviderName:
        """The chosen provider, else the first with a key, else the placeholder."""
        if self.translate_provider is not None:
            return self.translate_provider
        if self.openai_api_key is not None:
            return "openai"
        return "google" if self.google_api_key is not None else "placeholder"

    @property
    def model(self) -> str:
        """The chosen model, else the provider's default."""
        return self.translate_model or DEFAULT_MODELS[self.provider]


def keep_libraries_quiet() -> None:
    """Let the SDKs log warnings only."""
    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
