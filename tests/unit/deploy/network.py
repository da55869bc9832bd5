"""Whom network policies let talk: what they say about pods here, pods of other namespaces and addresses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.unit.deploy.rendering import Rendering, selects

HERE = "backendai"
NAMESPACE_NAME = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod with its labels and namespace, or somebody at an address."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = HERE
    address: str | None = None


class Network:
    """The policies of a rendering, all of which are of one namespace."""

    def __init__(self, rendering: Rendering) -> None:
        self._policies: list[dict[str, Any]] = [one["spec"] for one in rendering.of("NetworkPolicy")]

    def allows(self, source: Peer, target: Peer, port: int, *, protocol: str = "TCP") -> bool:
        """Whether a connection may be made: both ends say so."""
        wanted = (port, protocol)
        return self._lets("Egress", source, target, wanted) and self._lets("Ingress", target, source, wanted)

    def lets_out(self, source: Peer, target: Peer, port: int) -> bool:
        """What the source's end says."""
        return self._lets("Egress", source, target, (port, "TCP"))

    def lets_in(self, source: Peer, target: Peer, port: int) -> bool:
        """What the target's end says."""
        return self._lets("Ingress", target, source, (port, "TCP"))

    def _lets(self, direction: str, pod: Peer, other: Peer, wanted: tuple[int, str]) -> bool:
        if pod.namespace != HERE or pod.address is not None:
            return True  # not ours to say
        policies = [
            one for one in self._policies if direction in one["policyTypes"] and selects(one["podSelector"], pod.labels)
        ]
        rules = [rule for one in policies for rule in one.get(direction.lower(), [])]
        return not policies or any(_fits(rule, direction, other, wanted) for rule in rules)


def _fits(rule: Mapping[str, Any], direction: str, other: Peer, wanted: tuple[int, str]) -> bool:
    ports: Iterable[Mapping[str, Any]] = rule.get("ports", [])
    if ports and wanted not in {(port["port"], port["protocol"]) for port in ports}:
        return False
    peers = rule.get("to" if direction == "Egress" else "from")
    return peers is None or any(_is_meant(peer, other) for peer in peers)


def _is_meant(peer: Mapping[str, Any], other: Peer) -> bool:
    if (block := peer.get("ipBlock")) is not None:
        return other.address is not None and _is_within(block, other.address)
    if other.address is not None:
        return False
    namespaces = peer.get("namespaceSelector")
    if namespaces is None:
        if other.namespace != HERE:
            return False
    elif not selects(namespaces, {NAMESPACE_NAME: other.namespace}):
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def _is_within(block: Mapping[str, Any], address: str) -> bool:
    inside = ip_address(address) in ip_network(block["cidr"])
    return inside and not any(ip_address(address) in ip_network(one) for one in block.get("except", []))
