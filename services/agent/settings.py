"""The agent's settings, and the switches that keep the libraries it uses quiet and at home."""

import logging
import os

from pydantic import Field

from services.kit.nats_url import NatsUrl
from services.kit.settings import ApiKey, ProcessSettings

# Set to something else, LangChain would send every run, conversation included, to a vendor.
_TRACING_SWITCHES = ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2")
# Their debug lines hold requests and answers.
_TALKATIVE_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "aiohttp", "google_genai", "langsmith", "nats")


class AgentSettings(ProcessSettings):
    """What the agent is told."""

    agent_listen: str = Field("127.0.0.1:50053", description="Where the gRPC health service listens, host:port.")
    chat_address: str = Field("127.0.0.1:50051", description="The chat service, a gRPC target.")
    nats_url: NatsUrl = Field("nats://127.0.0.1:4222", description="The NATS server, or several, comma separated.")
    nats_replicas: int = Field(
        1,
        ge=1,
        le=5,
        description="On how many servers of a NATS cluster the streams are kept; 3 for a cluster of three.",
    )
    agent_concurrency: int = Field(16, ge=1, le=100, description="Tasks that one process runs at once.")
    agent_provider_timeout_s: float = Field(
        60.0, gt=0, description="How long a provider may keep silent, before its answer and within it, in seconds."
    )

    openai_api_key: ApiKey | None = Field(None, description="Turns the provider openai on.")
    openai_base_url: str | None = Field(None, description="Another server that speaks OpenAI's API.")
    google_api_key: ApiKey | None = Field(None, description="Turns the provider google (Gemini) on.")
    google_base_url: str | None = Field(None, description="Another server that speaks Gemini's API.")
    anthropic_api_key: ApiKey | None = Field(None, description="Turns the provider anthropic on.")
    anthropic_base_url: str | None = Field(None, description="Another server than api.anthropic.com.")
    groq_api_key: ApiKey | None = Field(None, description="Turns the provider groq on.")
    groq_base_url: str | None = Field(None, description="Another server than api.groq.com.")
    deepseek_api_key: ApiKey | None = Field(None, description="Turns the provider deepseek on.")
    deepseek_base_url: str | None = Field(None, description="Another server than api.deepseek.com.")
    local_base_url: str | None = Field(None, description="Turns the provider local on: a server that needs no key.")


def keep_libraries_quiet() -> None:
    """Switch LangChain's tracing off, whatever the environment says, and let the SDKs log warnings only."""
    for name in _TRACING_SWITCHES:
        os.environ[name] = "false"
    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
