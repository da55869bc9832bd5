"""What the speech service is told."""

import logging
import os
from typing import Literal, Self

from pydantic import Field, model_validator

from services.kit.settings import ApiKey, ProcessSettings
from services.speech.domain import Bounds

ProviderName = Literal["openai", "local"]

DEFAULT_MODELS: dict[ProviderName, str] = {"openai": "whisper-1", "local": "pocketsphinx"}
OPENAI_BASE_URL = "https://api.openai.com/v1"
# The recogniser that `make up` starts knows English only, and works at about the speed of speech.
POCKETSPHINX_BOUNDS = Bounds(max_seconds=60, languages=frozenset({"en"}))
# OpenAI refuses longer recordings for these models and their dated snapshots; whisper-1 has no such bound.
SHORT_MODELS = ("gpt-4o-transcribe", "gpt-4o-mini-transcribe")
SHORT_MODEL_SECONDS = 1_400.0
# A key that a server without keys does not look at; the SDK insists on one.
NO_KEY = "none"
# Their debug lines hold requests and answers.
_TALKATIVE_LOGGERS = ("openai", "httpx2", "httpcore2")


class Settings(ProcessSettings):
    """Read from the environment once, in `__main__`."""

    speech_listen: str = Field("127.0.0.1:50054", description="The address the gRPC server binds, host:port.")
    billing_address: str = Field("127.0.0.1:50052", description="gRPC target of billing.")
    speech_provider: ProviderName | None = Field(
        None, description="openai or local; the first that can be reached when unset."
    )
    speech_model: str | None = Field(
        None, max_length=100, description="The model; whisper-1, or pocketsphinx for local, when unset."
    )
    speech_local_base_url: str | None = Field(
        None, description="A server without a key that speaks OpenAI's API: the provider local."
    )
    speech_timeout_s: float = Field(
        180, gt=0, le=3_600, description="How long the provider may take, its repeated tries included, in seconds."
    )
    speech_max_seconds: float = Field(14_400, gt=0, le=86_400, description="The longest recording, in seconds.")
    speech_concurrency: int = Field(
        64, ge=1, le=1_000, description="Recordings a process has under way, at most; more are refused with 503."
    )
    speech_decoders: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        le=256,
        description="Recordings that are decoded at a time; one a processor when unset.",
    )
    speech_cache_mib: int = Field(
        32, ge=1, le=4_096, description="Memory of a process for the answers of requests that may come again, in MiB."
    )

    openai_api_key: ApiKey | None = Field(None, description="OpenAI's key.")
    openai_base_url: str = Field(OPENAI_BASE_URL, description="Another server that speaks OpenAI's API.")

    @model_validator(mode="after")
    def _the_provider_can_be_reached(self) -> Self:
        if self.speech_provider == "openai" and self.openai_api_key is None:
            raise ValueError("SPEECH_PROVIDER=openai needs OPENAI_API_KEY")
        if self.speech_provider == "local" and self.speech_local_base_url is None:
            raise ValueError("SPEECH_PROVIDER=local needs SPEECH_LOCAL_BASE_URL")
        return self

    @property
    def provider(self) -> ProviderName | None:
        """The chosen provider, else the first that can be reached; None when there is none."""
        if self.speech_provider is not None:
            return self.speech_provider
        if self.openai_api_key is not None:
            return "openai"
        return "local" if self.speech_local_base_url is not None else None

    def model_of(self, provider: ProviderName) -> str:
        """The chosen model, else the provider's default."""
        return self.speech_model or DEFAULT_MODELS[provider]

    def base_url_of(self, provider: ProviderName) -> str:
        """Where the provider is."""
        return self.speech_local_base_url or "" if provider == "local" else self.openai_base_url

    def bounds_of(self, provider: ProviderName) -> Bounds:
        """What the provider takes."""
        if (provider, self.model_of(provider)) == ("local", DEFAULT_MODELS["local"]):
            return POCKETSPHINX_BOUNDS
        # A proxy of several vendors writes openai/gpt-4o-transcribe.
        if self.model_of(provider).rpartition("/")[2].startswith(SHORT_MODELS):
            return Bounds(max_seconds=min(self.speech_max_seconds, SHORT_MODEL_SECONDS))
        return Bounds(max_seconds=self.speech_max_seconds)


def keep_libraries_quiet() -> None:
    """Let the SDK log warnings only."""
    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
