"""Bring the schema `chat` to its newest version: `python -m services.chat.migrations`."""

from pathlib import Path

from services.chat.store.tables import SCHEMA
from services.kit.migrations import upgrade
from services.kit.settings import DatabaseSettings

if __name__ == "__main__":
    upgrade(Path(__file__).parent, SCHEMA, DatabaseSettings().database_url.get_secret_value())
