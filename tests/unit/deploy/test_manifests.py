"""What `make manifests` says of faults. That the project's own manifests have none it says in `make check`."""

import subprocess
import sys
from pathlib import Path

from deploy.manifests import COMPONENTS, K8S, NO_KUBECTL, problems
from tests.unit.deploy.rendering import Rendering

ROOT = K8S.parents[1]


def test_a_field_that_kubernetes_does_not_know_is_a_problem_in_each_rendering() -> None:
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "wrong"}, "dta": {}}
    found = list(problems({"one": [wrong], "two": [wrong]}))
    assert [line.partition(":")[0] for line in found] == ["one", "one", "two", "two"]
    assert "dta" in found[0]


def test_a_kind_that_nobody_brings_is_a_problem() -> None:
    (line,) = problems(
        {"one": [{"apiVersion": "traefik.io/v1alpha1", "kind": "IngresRoute", "metadata": {"name": "x"}}]}
    )
    assert "IngresRoute" in line


def test_without_kubectl_it_says_how_to_get_it_and_fails(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "deploy.manifests"],
        check=False,
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr.strip()) == (1, NO_KUBECTL)


def test_production_switches_every_component_on(renderings: dict[str, Rendering]) -> None:
    production = {(one["kind"], one["metadata"]["name"]) for one in renderings["overlay production"].manifests}
    for name in COMPONENTS:
        brought = {
            (one["kind"], one["metadata"]["name"])
            for one in renderings[name].manifests
            if one not in renderings["base"].manifests and one["kind"] != "ConfigMap"
        }
        assert brought <= production, name
