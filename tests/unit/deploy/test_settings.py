"""What the manifests tell each process is what it reads: names, values, and no secret that is another's."""

from __future__ import annotations

import os
import re

import pytest
from pydantic_settings import BaseSettings

from deploy.local.processes import NEEDS, PRIVATE
from gateway.settings import Settings as GatewaySettings
from services.agent.settings import AgentSettings
from services.billing.settings import Settings as BillingSettings
from services.chat.settings import Settings as ChatSettings
from services.kit.postgres.settings import DatabaseSettings
from services.speech.settings import Settings as SpeechSettings
from services.translate.settings import Settings as TranslateSettings
from tests.unit.deploy.rendering import Rendering, container_of, secrets_of

SETTINGS: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "chat": ChatSettings,
    "billing": BillingSettings,
    "agent": AgentSettings,
    "speech": SpeechSettings,
    "translate": TranslateSettings,
}
MIGRATIONS = ("chat-migrations", "billing-migrations")


def names_of(kind: type[BaseSettings]) -> set[str]:
    """The variables that a process reads."""
    return {field.upper() for field in kind.model_fields}


def parts_of_others(rendering: Rendering, kind: str, name: str) -> set[str]:
    """Variables that are there to be put into another one's value."""
    variables = container_of(rendering.named(kind, name)).get("env", [])
    return {part for one in variables for part in re.findall(r"\$\((\w+)\)", one.get("value", ""))}


def read(kind: type[BaseSettings], told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> BaseSettings:
    """What a process makes of an environment that holds nothing else."""
    for name in os.environ:
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return kind()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_process_is_told_only_what_it_reads(rendering: Rendering, name: str) -> None:
    told = rendering.environment(rendering.named("Deployment", name)).keys()
    assert told - parts_of_others(rendering, "Deployment", name) <= names_of(SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_process_can_start_with_what_it_is_told(
    rendering: Rendering, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = rendering.environment(rendering.named("Deployment", name))
    kind = SETTINGS[name]
    assert {field.upper() for field, about in kind.model_fields.items() if about.is_required()} <= told.keys()
    settings = read(kind, told, monkeypatch)
    if isinstance(settings, GatewaySettings | ChatSettings):
        assert settings.default_ai_provider in settings.providers


@pytest.mark.parametrize("name", MIGRATIONS)
def test_a_migration_is_told_its_database(rendering: Rendering, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = rendering.environment(rendering.named("Job", name))
    assert told.keys() - parts_of_others(rendering, "Job", name) == {"DATABASE_URL"}
    read(DatabaseSettings, told, monkeypatch)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_process_has_a_secret_that_is_anothers(rendering: Rendering, name: str) -> None:
    told = rendering.environment(rendering.named("Deployment", name)).keys()
    assert told & PRIVATE <= set(NEEDS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_secrets_come_from_secrets_alone(rendering: Rendering, name: str) -> None:
    deployment = rendering.named("Deployment", name)
    from_secrets = {variable for variable, _secret, _key in secrets_of(deployment)}
    made_of_them = {
        one["name"] for one in container_of(deployment)["env"] if re.search(r"\$\(\w+\)", one.get("value", ""))
    }
    told = rendering.environment(deployment)
    assert {variable for variable in PRIVATE if variable in told} <= from_secrets | made_of_them


@pytest.mark.parametrize("name", ["agent", "speech", "translate"])
def test_a_provider_without_a_key_keeps_nobody_from_starting(rendering: Rendering, name: str) -> None:
    for variable in container_of(rendering.named("Deployment", name))["env"]:
        if variable["name"].endswith("_API_KEY"):
            assert variable["valueFrom"]["secretKeyRef"]["optional"] is True


def test_production_takes_tokens_of_an_issuer_and_development_its_own(renderings: dict[str, Rendering]) -> None:
    for name, variable in (("overlay production", "AUTH_JWKS_URL"), ("overlay dev", "AUTH_JWT_SECRET")):
        rendering = renderings[name]
        told = rendering.environment(rendering.named("Deployment", "gateway"))
        assert {one for one in ("AUTH_JWKS_URL", "AUTH_JWT_SECRET") if told.get(one)} == {variable}


def test_only_development_tells_callers_what_methods_there_are(renderings: dict[str, Rendering]) -> None:
    for name, rendering in renderings.items():
        for deployment in rendering.processes.values():
            assert ("GRPC_REFLECTION" in rendering.environment(deployment)) == (name == "overlay dev")
