"""What the chat service is told."""

from functools import cached_property
from typing import Annotated

from pydantic import Field
from pydantic_settings import NoDecode

from services.kit.nats_url import NatsUrl
from services.kit.postgres.settings import DatabaseSettings


class Settings(DatabaseSettings):
    """Read from the environment once, in `__main__`."""

    chat_listen: str = Field("127.0.0.1:50051", description="The address the gRPC server binds, host:port.")
    chat_database_pool: int = Field(10, ge=2, le=200, description="Connections to Postgres a process, at most.")
    nats_url: NatsUrl = Field("nats://127.0.0.1:4222", description="NATS with JetStream.")
    billing_address: str = Field("127.0.0.1:50052", description="gRPC target of billing.")
    ai_providers: Annotated[str, NoDecode] = Field("", description="The providers that have a key, comma separated.")
    default_ai_provider: str = Field("local", description="The provider of a session that names none.")
    default_ai_model: str = Field("smollm2-135m-instruct", description="The model of a session that names none.")
    task_deadline_s: float = Field(600, gt=0, description="How long a task may take from its acceptance, in seconds.")
    chat_history_messages: int = Field(100, ge=1, le=2_000, description="The most messages an answer looks back on.")

    @cached_property
    def providers(self) -> frozenset[str]:
        """The configured providers."""
        return frozenset(name.strip() for name in self.ai_providers.split(",") if name.strip())
