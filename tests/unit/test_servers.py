"""The switch between containers and wheels."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(autouse=True)
def _kept_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own choice stays."""
    monkeypatch.setattr(servers, "_source", servers._source)


@pytest.fixture
def silent_engine() -> Iterator[str]:
    """An engine that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nobody/listens/here")


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_servers_come_from_wheels() -> None:
    assert servers.choose("auto") == "wheels (no Docker engine answers)"


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_whoever_asks_for_containers_is_told() -> None:
    with pytest.raises(servers.Unavailable, match="no Docker engine answers"):
        servers.choose("containers")


def test_an_engine_that_says_nothing_is_not_waited_for(silent_engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", silent_engine)
    began_at = time.monotonic()
    assert servers.choose("auto").startswith("wheels")
    assert time.monotonic() - began_at < 3 * servers.ENGINE_SECONDS


def test_a_word_that_is_no_choice_is_refused() -> None:
    with pytest.raises(servers.Unavailable, match="none of auto"):
        servers.choose("postgres")
