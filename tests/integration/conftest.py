"""One stack of each kind for the whole run; each test uses a workspace of its own."""

from collections.abc import Iterator

import pytest

from tests.integration.stack import PRODUCTION, Stack
from tests.servers import Postgres


@pytest.fixture(scope="session")
def stack(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One process of each service, or what TEST_PRODUCTION asks for."""
    url = postgres.create_database("stack", template=migrated_template)
    with Stack(tmp_path_factory.mktemp("stack"), url) as running:
        yield running


@pytest.fixture(scope="session")
def pair(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two processes of each service, mutual TLS between them; its tests may kill any of them, and leave all running."""
    url = postgres.create_database("pair", template=migrated_template)
    with Stack(tmp_path_factory.mktemp("pair"), url, of_each=2, mutual_tls=True) as running:
        yield running


@pytest.fixture(scope="session")
def single(
    request: pytest.FixtureRequest, postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One process of each service, whatever TEST_PRODUCTION asks for: for what each process keeps to itself."""
    if not PRODUCTION:
        yield request.getfixturevalue("stack")
        return
    url = postgres.create_database("single", template=migrated_template)
    with Stack(tmp_path_factory.mktemp("single"), url, of_each=1) as running:
        yield running


@pytest.fixture(autouse=True)
def usual_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Providers answer as usual again after a test that told them otherwise."""
    yield
    for name in {"stack", "pair", "single"} & set(request.fixturenames):
        running: Stack = request.getfixturevalue(name)
        for provider in ("openai", "gemini", "whisper"):
            running.script(provider, default={})
