"""One stack of each kind for the whole run; each test uses a workspace of its own."""

import os
from collections.abc import Iterator

import pytest

from deploy.local.postgres import Postgres
from tests.integration.stack import Stack

# The single processes speak plain text, as make up does; TEST_MUTUAL_TLS=1 gives them certificates too.
MUTUAL_TLS = os.environ.get("TEST_MUTUAL_TLS", "") == "1"


@pytest.fixture(scope="session")
def stack(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One process of each service."""
    url = postgres.create_database("stack", template=migrated_template)
    with Stack(tmp_path_factory.mktemp("stack"), url, mutual_tls=MUTUAL_TLS) as running:
        yield running


@pytest.fixture(scope="session")
def pair(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two processes of each service, mutual TLS between them; its tests may kill any of them, and leave all running."""
    url = postgres.create_database("pair", template=migrated_template)
    with Stack(tmp_path_factory.mktemp("pair"), url, of_each=2, mutual_tls=True) as running:
        yield running


@pytest.fixture(autouse=True)
def usual_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Providers answer as usual again after a test that told them otherwise."""
    yield
    for name in {"stack", "pair"} & set(request.fixturenames):
        running: Stack = request.getfixturevalue(name)
        for provider in ("openai", "gemini", "whisper"):
            running.script(provider, default={})
