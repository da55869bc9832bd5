"""Bring the schema `chat` to its newest version: `python -m services.chat.migrations`."""

from pathlib import Path

from services.chat.store.tables import SCHEMA
from services.kit.postgres.migrations import upgrade
from services.kit.postgres.settings import MigrationSettings

if __name__ == "__main__":
    upgrade(Path(__file__).parent, SCHEMA, MigrationSettings.read().url)
