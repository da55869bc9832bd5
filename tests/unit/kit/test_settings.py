"""Reading settings: white space, keys, and what a process says of wrong ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from services.agent.settings import AgentSettings
from services.kit.settings import ApiKey, ProcessSettings
from services.speech.settings import Settings as SpeechSettings
from services.translate.settings import Settings as TranslateSettings

ROOT = Path(__file__).parents[3]
PROCESSES = ("gateway", *(f"services.{name}" for name in ("agent", "billing", "chat", "speech", "translate")))
KEY = "sk-a-secret-key"


class Example(ProcessSettings):
    """A process with a key."""

    example_api_key: ApiKey | None = None
    example_base_url: str | None = None
    example_secret: SecretStr | None = None
    example_port: int = 1


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {}", "{}\t", "\u00a0{}"])
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Example, "example_api_key"),
        *((AgentSettings, f"{name}_api_key") for name in ("openai", "google", "anthropic", "groq", "deepseek")),
        (SpeechSettings, "openai_api_key"),
        (TranslateSettings, "openai_api_key"),
        (TranslateSettings, "google_api_key"),
    ],
)
def test_a_key_is_taken_without_what_is_around_it(
    settings: type[ProcessSettings], name: str, around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), around.format(KEY))
    assert getattr(settings(), name).get_secret_value() == KEY


def test_every_text_is_taken_without_what_is_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_BASE_URL", "http://127.0.0.1:1/v1\r")
    monkeypatch.setenv("EXAMPLE_SECRET", "a b\r\n")
    monkeypatch.setenv("EXAMPLE_PORT", "5\r")
    monkeypatch.setenv("LOG_LEVEL", " debug ")
    settings = Example()
    assert settings.example_base_url == "http://127.0.0.1:1/v1"
    assert settings.example_secret is not None
    assert settings.example_secret.get_secret_value() == "a b"
    assert (settings.example_port, settings.log_level) == (5, "debug")


@pytest.mark.parametrize("blank", ["", " ", "\r", "\r\n\t"])
def test_a_blank_value_counts_as_unset(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXAMPLE_API_KEY", "EXAMPLE_BASE_URL", "EXAMPLE_PORT", "LOG_FORMAT"):
        monkeypatch.setenv(name, blank)
    settings = Example()
    assert (settings.example_api_key, settings.example_base_url) == (None, None)
    assert (settings.example_port, settings.log_format) == (1, "json")


@pytest.mark.parametrize(
    "key", ["sk\u2013secret-key", "sk-secret\nkey", "sk-secret\x7fkey", "sk-secret\u200bkey", "sk-sécret-key"]
)
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_API_KEY", key)
    with pytest.raises(ValidationError) as refused:
        Example()
    assert key not in str(refused.value)
    with pytest.raises(SystemExit) as ended:
        Example.read()
    assert str(ended.value).startswith("EXAMPLE_API_KEY: ")
    assert len(str(ended.value).splitlines()) == 1
    assert key not in str(ended.value)


@pytest.mark.parametrize("process", PROCESSES)
def test_each_process_says_what_is_wrong_in_a_line_for_each_setting(process: str) -> None:
    environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), "DATABASE_URL": "postgresql:///x"}
    environment |= {"CURSOR_SECRET": "x" * 40, "JWT_SECRET": "y" * 40, "JWT_ALGORITHM": "HS256"}
    wrong = {"DRAIN_SECONDS": "a-secret-value", "OTEL_TRACES_SAMPLER_ARG": "another-secret-value"}
    ended = subprocess.run(
        (sys.executable, "-m", process),
        cwd=ROOT,
        env=environment | wrong,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "secret-value" not in ended.stdout + ended.stderr
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == list(wrong), ended.stderr
