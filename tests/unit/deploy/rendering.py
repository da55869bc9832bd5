"""A rendering as a cluster would read it: workloads, the pods they become, and what a container is told."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.manifests import Manifest

PROCESSES = ("gateway", "chat", "billing", "agent", "speech", "translate")
WORKLOADS = ("Deployment", "StatefulSet", "Job")
# What stands for a secret's value: long enough for those that have a least length.
SECRET = "a-secret-that-is-long-enough-for-all"
URLS = {"DATABASE_URL": "postgresql://someone@somewhere:5432/backendai", "NATS_URL": "nats://somewhere:4222"}


@dataclass(frozen=True)
class Pod:
    """A kind of pod: whose it is, its labels, its named ports."""

    name: str
    labels: Mapping[str, str]
    ports: Mapping[str, int] = field(default_factory=dict)


class Rendering:
    """The manifests of one rendering."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.manifests = manifests

    def of(self, *kinds: str) -> list[Manifest]:
        """Those of a kind."""
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def named(self, kind: str, name: str) -> Manifest:
        """The one of a kind and name."""
        (found,) = (manifest for manifest in self.of(kind) if name_of(manifest) == name)
        return found

    def names(self, *kinds: str) -> set[str]:
        """The names of those of a kind."""
        return {name_of(manifest) for manifest in self.of(*kinds)}

    @property
    def processes(self) -> dict[str, Manifest]:
        """The Deployments of our six processes."""
        return {name: self.named("Deployment", name) for name in PROCESSES}

    @property
    def pods(self) -> list[Pod]:
        """The pods of the workloads, and those that an operator makes."""
        made = [
            Pod(name_of(workload), template_of(workload)["metadata"]["labels"], ports_of(workload))
            for workload in self.of(*WORKLOADS)
        ]
        for cluster in self.of("Cluster"):
            labels = {"cnpg.io/cluster": name_of(cluster), "cnpg.io/podRole": "instance"}
            made.append(Pod(name_of(cluster), labels, {"postgresql": 5432, "metrics": 9187, "status": 8000}))
        for pooler in self.of("Pooler"):
            labels = {
                "cnpg.io/cluster": pooler["spec"]["cluster"]["name"],
                "cnpg.io/podRole": "pooler",
                "cnpg.io/poolerName": name_of(pooler),
            }
            made.append(Pod(name_of(pooler), labels, {"pgbouncer": 5432, "metrics": 9127}))
        return made

    def selected(self, selector: Mapping[str, Any]) -> list[Pod]:
        """The pods that a selector means."""
        return [pod for pod in self.pods if selects(selector, pod.labels)]

    def environment(self, workload: Manifest) -> dict[str, str]:
        """What a workload's container is told: its ConfigMaps, its own values, and something for each secret."""
        told: dict[str, str] = {}
        container = container_of(workload)
        for source in container.get("envFrom", []):
            told |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", []):
            secret = URLS.get(variable["name"], SECRET) if "valueFrom" in variable else ""
            value = variable.get("value", secret)
            told[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: told[match[1]], value)
        return told


def name_of(manifest: Manifest) -> str:
    """Its name."""
    name: str = manifest["metadata"]["name"]
    return name


def template_of(workload: Manifest) -> Manifest:
    """What its pods are made from."""
    template: Manifest = workload["spec"]["template"]
    return template


def container_of(workload: Manifest) -> dict[str, Any]:
    """Its one container."""
    (container,) = template_of(workload)["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def ports_of(workload: Manifest) -> dict[str, int]:
    """Its container's ports by name."""
    return {port["name"]: port["containerPort"] for port in container_of(workload).get("ports", [])}


def secrets_of(workload: Manifest) -> Iterator[tuple[str, str, str]]:
    """The variables that come from secrets: variable, Secret, key."""
    for variable in container_of(workload).get("env", []):
        if (reference := variable.get("valueFrom", {}).get("secretKeyRef")) is not None:
            yield variable["name"], reference["name"], reference["key"]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise NotImplementedError(expression["operator"])
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
