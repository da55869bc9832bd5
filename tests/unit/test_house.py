"""Rules of the house that no linter knows."""

import importlib
import re
from pathlib import Path

import pytest
from alembic import command
from pydantic_settings import BaseSettings

from services.kit.postgres import migrations

ROOT = Path(__file__).parents[2]
SETTINGS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for pattern in ("gateway/settings.py", "services/**/settings.py", "deploy/local/settings.py")
    for file in ROOT.glob(pattern)
)
SCHEMAS = sorted(folder.parent.name for folder in ROOT.glob("services/*/migrations"))


def test_env_example_names_every_setting_and_no_other() -> None:
    documented = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    read = {
        field.upper()
        for module in map(importlib.import_module, SETTINGS)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, BaseSettings)
        for field in kind.model_fields
    }
    assert documented == read


@pytest.mark.parametrize("schema", SCHEMAS)
def test_tables_and_migrations_say_the_same(schema: str, database_url: str) -> None:
    with migrations.migration_engine(database_url).connect() as connection:
        command.check(migrations.config(ROOT / "services" / schema / "migrations", connection))
