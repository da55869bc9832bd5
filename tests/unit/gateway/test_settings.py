"""A gateway that is told nonsense does not start."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.settings import Settings
from tests.unit.gateway.conftest import settings_for
from tests.unit.gateway.samples import SECRET


@pytest.mark.parametrize(
    "wrong",
    [
        {"auth_jwt_secret": None},
        {"auth_jwks_url": "https://id.example/jwks.json"},
        {"auth_jwt_secret": "short"},
        {"cursor_secret": "short"},
        {"agent_sync_timeout_s": 0},
        {"gateway_port": 65_536},
        *(
            {"cors_allowed_origins": text}
            for text in (
                "app.example.com",
                "https://app.example.com/",
                "https://app.example.com/chat",
                "https://app.example.com?x",
                "https://app.example.com:443",
                "http://app.example.com:80",
                "https://app.example.com:0",
                "https://app.example.com:65536",
                "https://App.example.com",
                "https://user@app.example.com",
                "https://*.example.com",
                "https://bücher.example",
                "https://",
                "null",
                "https://app.example.com https://b.example.com",
                "https://app.example.com, x",
            )
        ),
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings_for("127.0.0.1:1", **wrong)


def test_no_secret_is_shown() -> None:
    assert SECRET not in repr(settings_for("127.0.0.1:1"))


def test_a_wrong_environment_ends_the_process_with_a_line_for_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_JWT_SECRET", "hush-hush")
    monkeypatch.setenv("GATEWAY_PORT", "web")
    monkeypatch.delenv("CURSOR_SECRET", raising=False)
    with pytest.raises(SystemExit) as ended:
        Settings.read()
    told = str(ended.value)
    assert {line.partition(":")[0] for line in told.splitlines()} == {
        "AUTH_JWT_SECRET",
        "GATEWAY_PORT",
        "CURSOR_SECRET",
    }
    assert "hush-hush" not in told
    assert ended.value.__suppress_context__


def test_two_ways_to_know_a_caller_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTH_JWT_SECRET", "CURSOR_SECRET"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("AUTH_JWKS_URL", "https://id.example/jwks.json")
    with pytest.raises(SystemExit, match="and not both") as ended:
        Settings.read()
    assert SECRET not in str(ended.value)


def test_origins_are_a_comma_list() -> None:
    listed = [
        "https://app.example.com",
        "http://localhost:3000",
        "https://app.example.com:8443",
        "http://127.0.0.1:5173",
        "http://[::1]:5173",
        "https://xn--bcher-kva.example",
        "capacitor://localhost",
        "chrome-extension://abcdefghijklmnop",
        "*",
    ]
    assert settings_for("127.0.0.1:1", cors_allowed_origins=" , ".join([*listed, ""])).origins == set(listed)
    assert settings_for("127.0.0.1:1").origins == frozenset()


def test_providers_are_a_comma_list() -> None:
    assert settings_for("127.0.0.1:1", ai_providers=" local, google,,").providers == {"local", "google"}
