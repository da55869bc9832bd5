"""Alembic's entry: which tables the migrations make."""

from services.chat.store.tables import SCHEMA, metadata
from services.kit.postgres.migrations import run_env

run_env(metadata, SCHEMA)
