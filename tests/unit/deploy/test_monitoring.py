"""Alerts and dashboards ask for what is measured, and the runbook knows every alert."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
METRICS = [
    "services.kit.metrics",
    "services.kit.bus",
    "gateway.metrics",
    *(f"services.{name}.metrics" for name in ("chat", "billing", "agent")),
]
# What the scrape adds to every sample.
SCRAPED = {"service", "namespace", "pod"}
# What others measure: Prometheus, cert-manager.
FOREIGN = {"up", "certmanager_certificate_expiration_timestamp_seconds"}

RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARDS = {file.name: json.loads(file.read_text()) for file in sorted((MONITORING / "dashboards").glob("*.json"))}
QUERIES = [(rule["alert"], rule["expr"]) for rule in RULES] + [
    (f"{file}: {panel['title']}", target["expr"])
    for file, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for target in panel["targets"]
]


def measured() -> dict[str, set[str]]:
    """What processes tell, by sample name, with the labels it can have."""
    for module in METRICS:
        importlib.import_module(module)
    return {name: labels for family in list(REGISTRY._collector_to_names) for name, labels in _samples(family)}


def _samples(collector: Any) -> Iterator[tuple[str, set[str]]]:
    labels = {*getattr(collector, "_labelnames", ()), "le"}
    for name in REGISTRY._collector_to_names[collector]:
        yield name, labels


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """What a query selects."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
        inner = getattr(node, name, None)
        for child in inner if isinstance(inner, list) else [inner]:
            if child is not None:
                yield from selectors(child)


@pytest.mark.parametrize(("where", "query"), QUERIES)
def test_a_query_is_promql_and_asks_for_what_is_measured(where: str, query: str) -> None:
    known = measured()
    asked = list(selectors(promql_parser.parse(query)))
    assert asked
    for selector in asked:
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert selector.name in known or selector.name in FOREIGN, selector.name
        assert labels <= known.get(selector.name, labels) | SCRAPED, (selector.name, labels)


def test_every_alert_has_its_section_in_the_runbook_and_no_section_is_left_over() -> None:
    sections = re.findall(r"^## (BackendAI\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_happened_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_the_runbook_names_events_that_are_logged() -> None:
    code = "".join(file.read_text() for folder in ("gateway", "services") for file in (ROOT / folder).rglob("*.py"))
    named = re.findall(r"`(?:\"event\": )?\"?([a-z]+_[a-z_]+)\"?`", (ROOT / "docs" / "runbook.md").read_text())
    # A failure's code is its reason in lower case.
    unknown = [word for word in named if word not in code and f'"{word.upper()}"' not in code]
    assert not unknown


def test_the_operator_is_given_the_same_rules() -> None:
    plain, wrapped = (yaml.safe_load((MONITORING / name).read_text()) for name in ("alerts.yaml", "rules.yaml"))
    assert wrapped["spec"] == plain


def test_every_dashboard_goes_to_the_cluster() -> None:
    (made,) = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())["configMapGenerator"]
    assert {Path(file).name for file in made["files"]} == set(DASHBOARDS)


def test_dashboards_have_ids_of_their_own() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 3
