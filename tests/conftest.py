"""What tests of several services share: a real Postgres, and a fresh database of it for each test."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deploy.local.postgres import FAST
from services.kit.postgres import migrations
from tests import servers
from tests.servers import Postgres, new_postgres

TEMPLATE = "migrated"
SERVICES = Path(__file__).parent.parent / "services"
_copies = count(1)
_chosen = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Choose where Postgres and NATS come from."""
    try:
        config.stash[_chosen] = servers.choose(os.environ.get("TEST_SERVERS") or "auto")
    except servers.Unavailable as reason:
        raise pytest.UsageError(f"TEST_SERVERS: {reason}") from None


def pytest_report_header(config: pytest.Config) -> str:
    """Tell which it is."""
    return f"servers: {config.stash[_chosen]}"


def pytest_unconfigure() -> None:
    """Leave no container behind."""
    servers.remove_all()


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that a server may use which runs as another user.

    pytest's own are closed to others, again at each start of another pytest: a server in one would lose its files.
    """
    with TemporaryDirectory(prefix="backendai-tests-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres(open_folder: Path) -> Iterator[Postgres]:
    """The server, for as long as the tests run."""
    with new_postgres(open_folder / "postgres", settings=FAST) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """The server's maintenance database."""
    return postgres.url_of("postgres")


@pytest.fixture(scope="session")
def migrated_template(postgres: Postgres) -> str:
    """A database in which every service's migrations have run; tests get copies of it."""
    url = postgres.create_database(TEMPLATE)
    for folder in sorted(SERVICES.glob("*/migrations")):
        if (folder / "env.py").exists():
            migrations.upgrade(folder, folder.parent.name, url)
    return TEMPLATE


@pytest.fixture
def database_url(postgres: Postgres, migrated_template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    name = f"test_{next(_copies)}"
    yield postgres.create_database(name, template=migrated_template)
    postgres.drop_database(name)
