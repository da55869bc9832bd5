"""A gateway that is told nonsense does not start."""

from typing import Any

import pytest
from pydantic import ValidationError

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
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings_for("127.0.0.1:1", **wrong)


def test_no_secret_is_shown() -> None:
    assert SECRET not in repr(settings_for("127.0.0.1:1"))


def test_providers_are_a_comma_list() -> None:
    assert settings_for("127.0.0.1:1", ai_providers=" local, google,,").providers == {"local", "google"}
