"""Alembic's entry: what the schema should be."""

from services.billing.tables import SCHEMA, metadata
from services.kit.postgres.migrations import run_env

run_env(metadata, SCHEMA)
