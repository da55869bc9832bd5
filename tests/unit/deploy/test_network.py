"""The network policies are the call graph that the protos tell, with the engines, and nothing more."""

from __future__ import annotations

from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2
from backendai.common.v1 import common_pb2
from backendai.speech.v1 import speech_pb2
from backendai.translate.v1 import translate_pb2

from tests.unit.deploy.network import Network, Peer
from tests.unit.deploy.rendering import PROCESSES, Pod, Rendering

SOMEBODY = Peer({"app.kubernetes.io/name": "somebody"}, namespace="elsewhere")
TRAEFIK = Peer({"app.kubernetes.io/name": "traefik"}, namespace="traefik")
PROMETHEUS = Peer({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")
OPERATOR = Peer({"app.kubernetes.io/name": "cloudnative-pg"}, namespace="cnpg-system")
NAMES = Peer({"k8s-app": "kube-dns"}, namespace="kube-system")
INTERNET = ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")
PRIVATE = ("10.0.0.7", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "fd00::1", "fe80::1")

# Who needs what besides each other.
POSTGRES_USERS = {"chat", "billing", "chat-migrations", "billing-migrations"}
NATS_USERS = {"gateway", "chat", "agent"}
INTERNET_USERS = {"gateway", "agent", "speech", "translate"}


def calls_by_proto() -> set[tuple[str, str]]:
    """Caller and callee of every method, as the protos say."""
    files = (billing_pb2, chat_pb2, speech_pb2, translate_pb2)
    return {
        (caller, file.DESCRIPTOR.package.split(".")[1])
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        for caller in method.GetOptions().Extensions[common_pb2.callers]
    }


def peer(pod: Pod) -> Peer:
    """A pod as an end of a connection."""
    return Peer(pod.labels)


def callers(rendering: Rendering, target: Pod, port: int) -> set[str]:
    """Our pods that reach another one's port, itself apart."""
    network = Network(rendering)
    return {
        pod.name for pod in rendering.pods if pod.name != target.name and network.allows(peer(pod), peer(target), port)
    }


def pod_of(rendering: Rendering, name: str) -> Pod | None:
    """The pod of that name, if this rendering has it."""
    return next((pod for pod in rendering.pods if pod.name == name), None)


def reaching(rendering: Rendering, address: str, port: int) -> set[str]:
    """Our pods that reach an address."""
    network = Network(rendering)
    return {pod.name for pod in rendering.pods if network.allows(peer(pod), Peer(address=address), port)}


def test_the_protos_tell_the_whole_graph() -> None:
    assert calls_by_proto() == {
        ("gateway", "chat"),
        ("agent", "chat"),
        ("gateway", "billing"),
        ("chat", "billing"),
        ("speech", "billing"),
        ("translate", "billing"),
        ("gateway", "speech"),
        ("gateway", "translate"),
    }


def test_processes_reach_each_other_where_the_protos_let_them_call_and_nowhere_else(rendering: Rendering) -> None:
    network = Network(rendering)
    pods = [pod for pod in rendering.pods if pod.name in PROCESSES]
    calls = {(caller, callee, "grpc") for caller, callee in calls_by_proto()}
    # Each end says it: should one be wrong some day, the other one still holds.
    for says in (network.lets_out, network.lets_in):
        reached = {
            (source.name, target.name, name)
            for source in pods
            for target in pods
            for name, port in target.ports.items()
            if says(peer(source), peer(target), port)
        }
        assert reached == calls


def test_everybody_may_ask_for_names(rendering: Rendering) -> None:
    network = Network(rendering)
    for pod in rendering.pods:
        for protocol in ("UDP", "TCP"):
            assert network.allows(peer(pod), NAMES, 53, protocol=protocol)
        assert not network.allows(peer(pod), NAMES, 9153)


def test_a_stranger_gets_in_nowhere(rendering: Rendering) -> None:
    network = Network(rendering)
    for pod in rendering.pods:
        for port in pod.ports.values():
            for stranger in (SOMEBODY, Peer(SOMEBODY.labels), Peer(address=INTERNET[0])):
                assert not network.lets_in(stranger, peer(pod), port), (pod.name, port)


def test_a_pod_of_ours_with_a_new_name_reaches_nothing_but_names(rendering: Rendering) -> None:
    network = Network(rendering)
    newcomer = Peer({"app.kubernetes.io/name": "newcomer", "app.kubernetes.io/part-of": "backendai-chat"})
    for pod in rendering.pods:
        for port in pod.ports.values():
            assert not network.lets_out(newcomer, peer(pod), port), (pod.name, port)
    assert not network.allows(newcomer, Peer(address=INTERNET[0]), 443)


def test_only_traefik_comes_to_the_gateway_and_to_nothing_but_its_door(renderings: dict[str, Rendering]) -> None:
    for name, rendering in renderings.items():
        network = Network(rendering)
        reached = {
            (pod.name, port)
            for pod in rendering.pods
            for port in pod.ports.values()
            if network.allows(TRAEFIK, peer(pod), port)
        }
        assert reached == ({("gateway", 8080)} if rendering.of("IngressRoute") else set()), name


def test_prometheus_comes_to_all_ports_with_numbers_and_to_no_other(renderings: dict[str, Rendering]) -> None:
    for name, rendering in renderings.items():
        network = Network(rendering)
        reached = {
            (pod.name, port)
            for pod in rendering.pods
            for port in pod.ports.values()
            if network.allows(PROMETHEUS, peer(pod), port)
        }
        told = {
            (pod.name, port)
            for pod in rendering.pods
            for port_name, port in pod.ports.items()
            if port_name in ("ops", "metrics")
        }
        assert reached == (told if rendering.of("ServiceMonitor") else set()), name


def test_postgres_outside_is_reached_by_who_keeps_rows(rendering: Rendering) -> None:
    inside = pod_of(rendering, "postgres")
    assert reaching(rendering, INTERNET[0], 5432) == (set() if inside else POSTGRES_USERS)
    assert reaching(rendering, "10.0.0.7", 5432) == (set() if inside else POSTGRES_USERS)


def test_postgres_inside_is_reached_by_who_keeps_rows(rendering: Rendering) -> None:
    if (postgres := pod_of(rendering, "postgres")) is None:
        return
    if (pooler := pod_of(rendering, "postgres-pooler")) is None:
        assert callers(rendering, postgres, 5432) == POSTGRES_USERS
        return
    assert callers(rendering, pooler, 5432) == {"chat", "billing", "postgres"}
    assert callers(rendering, postgres, 5432) == {"chat-migrations", "billing-migrations", "postgres-pooler"}


def test_instances_of_postgres_reach_each_other_and_their_operator_reaches_them(
    renderings: dict[str, Rendering],
) -> None:
    rendering = renderings["cloudnativepg"]
    network, postgres = Network(rendering), pod_of(rendering, "postgres")
    assert postgres is not None
    for port in (5432, 8000):
        assert network.allows(peer(postgres), peer(postgres), port)
        assert network.allows(OPERATOR, peer(postgres), port)
    # The API server is at some private address, the object storage at some public one.
    assert network.allows(peer(postgres), Peer(address="10.0.0.1"), 443)
    assert network.allows(peer(postgres), Peer(address=INTERNET[0]), 443)


def test_nats_is_reached_by_who_gives_and_hears_hints(rendering: Rendering) -> None:
    nats = pod_of(rendering, "nats")
    assert reaching(rendering, INTERNET[0], 4222) == (set() if nats else NATS_USERS)
    if nats is not None:
        assert callers(rendering, nats, 4222) == NATS_USERS


def test_nats_servers_reach_each_other_and_nobody_else_joins_them(renderings: dict[str, Rendering]) -> None:
    rendering = renderings["nats"]
    nats = pod_of(rendering, "nats")
    assert nats is not None
    assert Network(rendering).allows(peer(nats), peer(nats), 6222)
    assert callers(rendering, nats, 6222) == set()


def test_every_process_sends_its_spans_to_the_collector(renderings: dict[str, Rendering]) -> None:
    rendering = renderings["overlay production"]
    collector = pod_of(rendering, "otel-collector")
    assert collector is not None
    assert callers(rendering, collector, 4317) == set(PROCESSES)


def test_the_internet_is_reached_by_who_asks_providers_or_the_issuer(rendering: Rendering) -> None:
    others = {"otel-collector"} if pod_of(rendering, "otel-collector") else set()
    if rendering.of("Cluster"):
        others |= {"postgres", "postgres-pooler"}  # backups, and the Kubernetes API
    for address in INTERNET:
        assert reaching(rendering, address, 443) == INTERNET_USERS | others
        assert reaching(rendering, address, 80) == set()


def test_no_process_reaches_a_private_address_or_the_clouds_metadata(rendering: Rendering) -> None:
    for address in PRIVATE:
        for port in (80, 443):
            assert reaching(rendering, address, port) & (set(PROCESSES) | {"otel-collector"}) == set()
