"""Brings the schema `billing` of DATABASE_URL to its newest version: `python -m services.billing.migrations`."""

from pathlib import Path

from services.kit.postgres.migrations import upgrade
from services.kit.postgres.settings import MigrationSettings


def main() -> None:
    """Upgrade to head. Safe to run from several places at once, and again."""
    upgrade(Path(__file__).parent, "billing", MigrationSettings.read().url)


if __name__ == "__main__":
    main()
