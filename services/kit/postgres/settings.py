"""What a process that keeps a schema is told, and its migrations."""

from typing import Literal, Self

from pydantic import Field, model_validator

from services.kit.postgres.url import DatabaseUrl
from services.kit.settings import ProcessSettings


class DatabaseSettings(ProcessSettings):
    """Of a process that keeps a schema."""

    database_url: DatabaseUrl = Field(description="Postgres, e.g. postgresql://user:password@host:5432/backendai.")
    database_prepared_statements: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether frequent statements are prepared. auto: unless a pooler is between; on: also then, "
        "for one that tracks them (PgBouncer 1.21 or newer with max_prepared_statements); off: never.",
    )


class MigrationSettings(ProcessSettings):
    """Of a migration: the services' database, reached another way where there is one."""

    database_url: DatabaseUrl | None = Field(None, description="The services' database.")
    migration_database_url: DatabaseUrl | None = Field(
        None, description="The same database for migrations, such as one past a pooler; DATABASE_URL when unset."
    )

    @model_validator(mode="after")
    def _require_a_database(self) -> Self:
        if self.database_url is None and self.migration_database_url is None:
            raise ValueError("DATABASE_URL: Field required")
        return self

    @property
    def url(self) -> str:
        """The database to migrate."""
        chosen = self.migration_database_url or self.database_url
        return chosen.get_secret_value() if chosen is not None else ""
