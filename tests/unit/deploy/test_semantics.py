"""What a schema can't see: that what the manifests name is there, and fits."""

import re
import tomllib
from collections import Counter
from typing import Any

import pytest

from deploy.manifests import K8S
from tests.unit.deploy.rendering import (
    PROCESSES,
    WORKLOADS,
    Rendering,
    container_of,
    name_of,
    ports_of,
    secrets_of,
    selects,
    template_of,
)

ROOT = K8S.parents[1]
README = (ROOT / "deploy" / "README.md").read_text()
# What a drain may take beyond the time it waits for calls: the gateway's farewells, the bus, the pools.
SPARE_SECONDS = 5
CLUSTER_WIDE = {"Namespace"}


def test_a_name_is_there_once(rendering: Rendering) -> None:
    counted = Counter((one["kind"], name_of(one)) for one in rendering.manifests)
    assert [name for name, count in counted.items() if count > 1] == []


def test_everything_is_in_the_one_namespace(rendering: Rendering) -> None:
    (namespace,) = rendering.of("Namespace")
    for manifest in rendering.manifests:
        if manifest["kind"] not in CLUSTER_WIDE:
            assert manifest["metadata"].get("namespace") == name_of(namespace), name_of(manifest)


def test_the_namespace_refuses_pods_with_privileges(rendering: Rendering) -> None:
    (namespace,) = rendering.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_workload_selects_its_own_pods_and_no_others(rendering: Rendering) -> None:
    for workload in rendering.of("Deployment", "StatefulSet"):
        assert [pod.name for pod in rendering.selected(workload["spec"]["selector"])] == [name_of(workload)]


def test_a_service_finds_pods_that_have_its_ports(rendering: Rendering) -> None:
    for service in rendering.of("Service"):
        (pod,) = rendering.selected({"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            assert pod.ports[port["targetPort"]] == port["port"], name_of(service)


def test_a_disruption_budget_is_for_the_pods_of_its_name(rendering: Rendering) -> None:
    for budget in rendering.of("PodDisruptionBudget"):
        assert [pod.name for pod in rendering.selected(budget["spec"]["selector"])] == [name_of(budget)]


def test_every_process_has_a_disruption_budget_that_lets_a_node_drain(rendering: Rendering) -> None:
    budgets = {name_of(budget): budget["spec"] for budget in rendering.of("PodDisruptionBudget")}
    for name in PROCESSES:
        assert budgets[name]["maxUnavailable"] == 1


def test_pods_spread_away_from_their_own_kind(rendering: Rendering) -> None:
    for workload in rendering.of(*WORKLOADS):
        pod = template_of(workload)
        constraints: list[dict[str, Any]] = pod["spec"].get("topologySpreadConstraints", [])
        affinity = pod["spec"].get("affinity", {}).get("podAntiAffinity", {})
        terms = [*constraints, *affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])]
        for term in terms:
            assert selects(term["labelSelector"], pod["metadata"]["labels"]), name_of(workload)
            found = rendering.selected(term["labelSelector"])
            assert [found_pod.name for found_pod in found] == [name_of(workload)]
    for name, deployment in rendering.processes.items():
        keys = [one["topologyKey"] for one in template_of(deployment)["spec"]["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"], name


def test_every_process_is_probed_at_its_ops_port(rendering: Rendering) -> None:
    for name, deployment in rendering.processes.items():
        container = container_of(deployment)
        asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert asked == {
            "startup": {"path": "/healthz", "port": "ops"},
            "liveness": {"path": "/healthz", "port": "ops"},
            "readiness": {"path": "/readyz", "port": "ops"},
        }, name


def test_probes_name_ports_that_are_there(rendering: Rendering) -> None:
    for workload in rendering.of(*WORKLOADS):
        container = container_of(workload)
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if (asked := container.get(kind, {}).get("httpGet")) is not None:
                assert asked["port"] in ports_of(workload), name_of(workload)


def test_a_pod_has_longer_to_go_than_its_drain_takes(rendering: Rendering) -> None:
    for name, deployment in rendering.processes.items():
        pause = container_of(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = float(rendering.environment(deployment)["DRAIN_SECONDS"])
        grace = template_of(deployment)["spec"]["terminationGracePeriodSeconds"]
        assert pause >= 5, name
        assert grace >= pause + drain + SPARE_SECONDS, name


def test_every_pod_is_restricted(rendering: Rendering) -> None:
    for workload in rendering.of(*WORKLOADS):
        pod, container = template_of(workload)["spec"], container_of(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True, name_of(workload)
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


def test_every_container_requests_and_is_limited(rendering: Rendering) -> None:
    for workload in rendering.of(*WORKLOADS):
        resources = container_of(workload)["resources"]
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= resources[kind].keys(), name_of(workload)


def test_every_volume_in_memory_or_on_a_node_has_a_size(rendering: Rendering) -> None:
    for workload in rendering.of(*WORKLOADS):
        for volume in template_of(workload)["spec"].get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], name_of(workload)


def test_mounts_are_of_volumes_that_are_there(rendering: Rendering) -> None:
    for workload in rendering.of(*WORKLOADS):
        volumes = {volume["name"] for volume in template_of(workload)["spec"].get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container_of(workload).get("volumeMounts", [])} == volumes


def test_service_accounts_are_there_and_carry_no_token(rendering: Rendering) -> None:
    accounts = {name_of(account): account for account in rendering.of("ServiceAccount")}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    for workload in rendering.of(*WORKLOADS):
        wanted = template_of(workload)["spec"].get("serviceAccountName")
        assert wanted is None or wanted in accounts, name_of(workload)
    for name, deployment in rendering.processes.items():
        assert template_of(deployment)["spec"]["serviceAccountName"] == name


def test_config_maps_are_named_as_they_are_made(rendering: Rendering) -> None:
    made = rendering.names("ConfigMap")
    for workload in rendering.of(*WORKLOADS):
        named = {source["configMapRef"]["name"] for source in container_of(workload).get("envFrom", [])}
        named |= {
            volume["configMap"]["name"]
            for volume in template_of(workload)["spec"].get("volumes", [])
            if "configMap" in volume
        }
        assert named <= made, name_of(workload)
        # With a hash of what they say, so that a change makes new pods.
        assert all(re.fullmatch(r".+-[a-z0-9]{10}", name) for name in named)


def in_readme(secret: str, key: str) -> bool:
    """Whether deploy/README.md tells to make it."""
    return re.search(rf"^\| `{secret}` \|.*`{key}`", README, re.MULTILINE) is not None


def test_a_secret_is_made_here_or_by_an_operator_or_is_in_the_readme(rendering: Rendering) -> None:
    made = {(name_of(one), key) for one in rendering.of("Secret") for key in one["data"]}
    made |= {(f"{name_of(one)}-app", "password") for one in rendering.of("Cluster")}
    for workload in rendering.of(*WORKLOADS):
        for _variable, secret, key in secrets_of(workload):
            assert (secret, key) in made or in_readme(secret, key), (name_of(workload), secret, key)


def test_secrets_that_operators_read_are_in_the_readme(rendering: Rendering) -> None:
    for cluster in rendering.of("Cluster"):
        for reference in cluster["spec"]["backup"]["barmanObjectStore"]["s3Credentials"].values():
            assert in_readme(reference["name"], reference["key"])
    for route in rendering.of("IngressRoute"):
        if "tls" in route["spec"]:
            assert in_readme(route["spec"]["tls"]["secretName"], "tls.key")


def test_secrets_that_are_mounted_are_those_of_certificates(rendering: Rendering) -> None:
    made = {one["spec"]["secretName"] for one in rendering.of("Certificate")}
    for workload in rendering.of(*WORKLOADS):
        for volume in template_of(workload)["spec"].get("volumes", []):
            assert "secret" not in volume or volume["secret"]["secretName"] in made, name_of(workload)


def test_a_process_under_mutual_tls_has_the_certificate_of_its_own_name(renderings: dict[str, Rendering]) -> None:
    rendering = renderings["mtls"]
    for name, deployment in rendering.processes.items():
        certificate = rendering.named("Certificate", name)["spec"]
        assert (certificate["commonName"], certificate["dnsNames"]) == (name, [name])
        assert {"server auth", "client auth"} <= set(certificate["usages"])
        folder = rendering.environment(deployment)["GRPC_TLS_DIR"]
        (mount,) = (one for one in container_of(deployment)["volumeMounts"] if one["mountPath"] == folder)
        assert mount["readOnly"] is True
        (volume,) = (one for one in template_of(deployment)["spec"]["volumes"] if one["name"] == mount["name"])
        assert volume["secret"]["secretName"] == certificate["secretName"]


def test_certificates_are_signed_by_issuers_that_are_there(rendering: Rendering) -> None:
    secrets = {one["spec"]["secretName"] for one in rendering.of("Certificate")}
    for certificate in rendering.of("Certificate"):
        assert certificate["spec"]["issuerRef"]["name"] in rendering.names("Issuer")
    for issuer in rendering.of("Issuer"):
        assert "selfSigned" in issuer["spec"] or issuer["spec"]["ca"]["secretName"] in secrets


def test_autoscalers_own_deployments_that_are_there_one_each_and_no_number_fights_them(rendering: Rendering) -> None:
    owned = [one["spec"]["scaleTargetRef"]["name"] for one in rendering.of("HorizontalPodAutoscaler", "ScaledObject")]
    assert len(owned) == len(set(owned))
    for name in owned:
        assert "replicas" not in rendering.named("Deployment", name)["spec"]


def test_all_that_answers_requests_scales_with_them_and_the_agent_with_the_queue(
    renderings: dict[str, Rendering],
) -> None:
    production = renderings["overlay production"]
    hpa = {one["spec"]["scaleTargetRef"]["name"] for one in production.of("HorizontalPodAutoscaler")}
    assert hpa == set(PROCESSES) - {"agent"}
    (scaled,) = production.of("ScaledObject")
    assert scaled["spec"]["scaleTargetRef"] == {"name": "agent"}
    assert 'state="queued"' in scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert scaled["spec"]["minReplicaCount"] <= scaled["spec"]["fallback"]["replicas"]
    assert scaled["spec"]["fallback"]["replicas"] <= scaled["spec"]["maxReplicaCount"]
    namespace = production.of("Namespace")[0]["metadata"]["name"]
    for trigger in scaled["spec"]["triggers"]:
        assert f'namespace="{namespace}"' in trigger["metadata"]["query"]


def test_what_autoscalers_measure_in_percent_is_requested(rendering: Rendering) -> None:
    for autoscaler in rendering.of("HorizontalPodAutoscaler"):
        deployment = rendering.named("Deployment", autoscaler["spec"]["scaleTargetRef"]["name"])
        for metric in autoscaler["spec"]["metrics"]:
            assert metric["resource"]["name"] in container_of(deployment)["resources"]["requests"]


def test_monitors_find_ports_that_are_there(rendering: Rendering) -> None:
    for monitor in rendering.of("ServiceMonitor"):
        found = [
            one for one in rendering.of("Service") if selects(monitor["spec"]["selector"], one["metadata"]["labels"])
        ]
        assert {name_of(service) for service in found} == set(PROCESSES)
        for service in found:
            ports = {port["name"] for port in service["spec"]["ports"]}
            assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    for monitor in rendering.of("PodMonitor"):
        for pod in rendering.selected(monitor["spec"]["selector"]):
            assert pod.name == name_of(monitor)
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                assert endpoint["port"] in pod.ports


def test_monitors_find_every_engine_that_tells_numbers(renderings: dict[str, Rendering]) -> None:
    production = renderings["overlay production"]
    found = {pod.name for one in production.of("PodMonitor") for pod in production.selected(one["spec"]["selector"])}
    assert found == {"postgres", "postgres-pooler", "otel-collector"}


def test_grpc_services_are_headless_so_that_callers_see_every_pod(rendering: Rendering) -> None:
    for name in set(PROCESSES) - {"gateway"}:
        assert rendering.named("Service", name)["spec"]["clusterIP"] == "None"


def test_addresses_lead_to_services(rendering: Rendering) -> None:
    for deployment in rendering.processes.values():
        told = rendering.environment(deployment)
        for variable in (name for name in told if name.endswith("_ADDRESS")):
            match = re.fullmatch(r"dns:///([a-z]+):(\d+)", told[variable])
            assert match, told[variable]
            assert variable == f"{match[1].upper()}_ADDRESS"
            ports = {port["name"]: port["port"] for port in rendering.named("Service", match[1])["spec"]["ports"]}
            assert ports["grpc"] == int(match[2])


def test_processes_listen_where_their_ports_are(rendering: Rendering) -> None:
    for name, deployment in rendering.processes.items():
        told, ports = rendering.environment(deployment), ports_of(deployment)
        assert told["OPS_LISTEN"] == f"0.0.0.0:{ports['ops']}"
        if name == "gateway":
            assert (told["GATEWAY_HOST"], told["GATEWAY_PORT"]) == ("0.0.0.0", str(ports["http"]))
        elif name != "agent":  # whose gRPC port nobody calls
            assert told[f"{name.upper()}_LISTEN"] == f"0.0.0.0:{ports['grpc']}"


def test_everybody_runs_the_version_of_the_project(rendering: Rendering) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for workload in rendering.of(*WORKLOADS):
        name = name_of(workload).removesuffix("-migrations")
        if name in PROCESSES:
            assert re.fullmatch(rf"(.+/)?backendai/{name}:{version}", container_of(workload)["image"])


def test_no_image_is_whatever_is_newest(rendering: Rendering) -> None:
    for workload in rendering.of(*WORKLOADS):
        tag = container_of(workload)["image"].partition(":")[2]
        assert re.match(r"\d", tag), name_of(workload)


@pytest.mark.parametrize("service", ["chat", "billing"])
def test_migrations_are_jobs_that_need_nothing_but_their_secret(rendering: Rendering, service: str) -> None:
    job = rendering.named("Job", f"{service}-migrations")
    container = container_of(job)
    assert container["command"] == ["python", "-m", f"services.{service}.migrations"]
    assert "envFrom" not in container


def test_through_the_pooler_statements_are_prepared_and_bounded_and_migrations_go_past_it(
    renderings: dict[str, Rendering],
) -> None:
    rendering = renderings["cloudnativepg"]
    (pooler,) = rendering.of("Pooler")
    parameters = pooler["spec"]["pgbouncer"]["parameters"]
    assert pooler["spec"]["pgbouncer"]["poolMode"] == "transaction"
    assert int(parameters["max_prepared_statements"]) > 0
    (cluster,) = rendering.of("Cluster")
    assert "ALTER ROLE backendai SET statement_timeout = '10s'" in cluster["spec"]["bootstrap"]["initdb"]["postInitSQL"]
    for service in ("chat", "billing"):
        told = rendering.environment(rendering.named("Deployment", service))
        assert f"@{name_of(pooler)}:5432/" in told["DATABASE_URL"]
        assert told["DATABASE_PREPARED_STATEMENTS"] == "on"
        url = rendering.environment(rendering.named("Job", f"{service}-migrations"))["DATABASE_URL"]
        assert f"@{name_of(cluster)}-rw:5432/" in url


def test_poolers_together_leave_the_server_connections_for_others(renderings: dict[str, Rendering]) -> None:
    rendering = renderings["cloudnativepg"]
    (pooler,), (cluster,) = rendering.of("Pooler"), rendering.of("Cluster")
    parameters = pooler["spec"]["pgbouncer"]["parameters"]
    most = pooler["spec"]["instances"] * (int(parameters["default_pool_size"]) + int(parameters["reserve_pool_size"]))
    assert most <= int(cluster["spec"]["postgresql"]["parameters"]["max_connections"]) - 40


def test_the_nats_servers_know_each_other_by_the_names_of_their_pods(renderings: dict[str, Rendering]) -> None:
    rendering = renderings["nats"]
    servers = rendering.named("StatefulSet", "nats")["spec"]
    (config,) = (one["data"]["nats.conf"] for one in rendering.of("ConfigMap") if "nats.conf" in one["data"])
    routes = re.findall(r"nats://(nats-\d+)\.(\S+):6222", config)
    assert routes == [(f"nats-{number}", servers["serviceName"]) for number in range(servers["replicas"])]
    assert rendering.named("Service", servers["serviceName"])["spec"]["publishNotReadyAddresses"] is True
