"""The way in: both forms say the same, and let in what is documented and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.manifests import K8S, render
from gateway import bodies, cors, edge, server, uploads
from tests.unit.deploy.rendering import Rendering, name_of

ROOT = K8S.parents[1]
TRAEFIK = ROOT / "deploy" / "traefik"
HOST = "chat.example.com"
EDGE = ["hsts", "rate-limit", "in-flight", "strip-headers"]
RULE = re.compile(r"(Host|PathPrefix|Method)\(`([^`]*)`\)")
ORIGIN = re.compile(r' *# \{\{ range env "CORS_ALLOWED_ORIGINS" [^}]*\}\}\n(.*?) *# \{\{ end \}\}\n', re.DOTALL)
IF_ORIGINS = re.compile(r' *# \{\{ if env "CORS_ALLOWED_ORIGINS" \}\}\n(.*?) *# \{\{ end \}\}\n', re.DOTALL)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT")
# The document describes the API; itself and its page are described in README.md.
DOCUMENT = {"/api/docs": ["GET", "HEAD"], "/api/openapi.json": ["GET", "HEAD"]}
OPENAPI: dict[str, dict[str, Any]] = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
STREAM = "text/event-stream"


@dataclass(frozen=True)
class Router:
    """A router of either form: where it listens, what it matches, what stands before its service."""

    entry_points: list[str]
    rule: str
    middlewares: list[str]
    tls: str | None

    @property
    def parts(self) -> dict[str, str]:
        """What its rule asks of a request."""
        return dict(RULE.findall(self.rule))

    @property
    def methods(self) -> set[str]:
        """The methods that it lets in; all when its rule names none."""
        return {value for kind, value in RULE.findall(self.rule) if kind == "Method"} or set(METHODS)

    def matches(self, method: str, path: str) -> bool:
        """Whether a request of our host gets in here."""
        return path.startswith(self.parts["PathPrefix"]) and method in self.methods


@cache
def dynamic(section: str, origins: str = "") -> dict[str, Any]:
    """A section of the plain install's dynamic files, as Traefik reads them with this CORS_ALLOWED_ORIGINS alone."""
    found: dict[str, Any] = {}
    for file in sorted((TRAEFIK / "dynamic").glob("*.yaml")):
        text = file.read_text()
        host = re.search(r"""\$host := env "PUBLIC_HOST" \| default "([^"]+)""", text)
        text = text.replace("{{ $host }}", host[1] if host else "")
        text = ORIGIN.sub(
            lambda each: "".join(each[1].replace("{{ . }}", origin) for origin in origins.split(",")), text
        )
        document = yaml.safe_load(IF_ORIGINS.sub(lambda block: block[1] if origins else "", text))
        found |= document.get("http", {}).get(section, {})
        found |= document.get("tls", {}).get(section, {}) if section == "options" else {}
    return found


def routers() -> dict[str, Router]:
    """The plain install's."""
    return {
        name: Router(
            one["entryPoints"], one["rule"], one["middlewares"], one["tls"]["options"] if "tls" in one else None
        )
        for name, one in dynamic("routers").items()
    }


def api_routers() -> Iterator[Router]:
    """Those that lead to the gateway."""
    return (router for router in routers().values() if router.entry_points == ["websecure"])


def preflights() -> Router:
    """The one for what browsers ask before a page on another origin sends something."""
    return routers()["preflights"]


def chain(router: Router, origins: str = "") -> list[str]:
    """Its middlewares in their order, with those that stand for several written out."""
    known = dynamic("middlewares", origins)
    return [
        inner
        for name in router.middlewares
        for inner in known[name].get("chain", {"middlewares": [name]})["middlewares"]
    ]


def documented() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path, operation."""
    for path, operations in OPENAPI.items():
        for method, operation in operations.items():
            yield method.upper(), path, operation
            if method == "get":
                yield "HEAD", path, {}
    for path, methods in DOCUMENT.items():
        yield from ((method, path, {}) for method in methods)


def example(path: str) -> str:
    """A path with something in the place of its parameters."""
    return re.sub(r"\{[^}]+\}", "5e0c7b1a-1111-4222-8333-944455556666", path)


def literal_head(path: str) -> str:
    """What comes before the first parameter, without the slash that the gateway redirects to."""
    return path.partition("{")[0].rstrip("/")


@pytest.mark.parametrize("router", routers().values(), ids=routers())
def test_rules_are_made_of_host_path_prefix_and_method_alone(router: Router) -> None:
    found = [f"{kind}(`{value}`)" for kind, value in RULE.findall(router.rule)]
    methods = " || ".join(one for one in found if one.startswith("Method"))
    alone = [f"({methods})" if "||" in methods else methods] if methods else []
    assert " && ".join([found[0], *alone, found[-1]]) == router.rule
    assert router.parts["Host"] == HOST


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _operation in documented()])
def test_a_documented_request_gets_in_by_exactly_one_router(method: str, path: str) -> None:
    for wanted in (example(path), example(path).rstrip("/")):
        assert len([router for router in api_routers() if router.matches(method, wanted)]) == 1


def test_a_prefix_is_as_long_as_the_documented_paths_behind_it_allow() -> None:
    heads = {(literal_head(path), method) for method, path, _operation in documented()}
    let_in = {
        (router.parts["PathPrefix"], method)
        for router in api_routers()
        for method in router.methods
        if router != preflights()
    }
    widest = {
        (prefix, method)
        for prefix, method in heads
        if not any(other != prefix and prefix.startswith(other) for other, same in heads if same == method)
    }
    assert let_in == widest


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/api", "/api/", "/api/admin/", "/docs", "/openapi.json", "/internal", "/api/chats/"]
)
def test_what_is_not_documented_does_not_get_in(path: str) -> None:
    let_in = {method for router in api_routers() for method in METHODS if router.matches(method, path)}
    assert let_in <= {"OPTIONS"}


def test_preflights_get_to_the_gateway_for_every_path_of_the_api() -> None:
    assert preflights().methods == {"OPTIONS"}
    for _method, path, _operation in documented():
        assert not path.startswith("/api/") or preflights().matches("OPTIONS", example(path))


@pytest.mark.parametrize(
    "prefix", sorted({router.parts["PathPrefix"] for router in api_routers() if router != preflights()})
)
def test_methods_that_nothing_behind_a_prefix_has_do_not_get_in(prefix: str) -> None:
    behind = {method for method, path, _operation in documented() if path.startswith(prefix)}
    let_in = {method for method in METHODS for router in api_routers() if router.matches(method, f"{prefix}/")}
    assert let_in - {"OPTIONS"} == behind


def test_what_may_answer_with_a_stream_is_never_buffered() -> None:
    streaming = {
        (method, path)
        for method, path, operation in documented()
        if any(STREAM in answer.get("content", {}) for answer in operation.get("responses", {}).values())
    }
    assert {method for method, _path in streaming} == {"GET", "POST"}
    known = dynamic("middlewares")
    for method, path in streaming:
        (router,) = (one for one in api_routers() if one.matches(method, example(path)))
        assert not [name for name in chain(router) if "buffering" in known[name]]


def test_only_reads_are_retried() -> None:
    retried = [router for router in api_routers() if "retry" in chain(router)]
    assert {method for router in retried for method in router.methods} == {"GET", "HEAD"}
    # What a gateway has answered, with whatever status, is not asked again.
    assert dynamic("middlewares")["retry"]["retry"].keys() == {"attempts", "initialInterval"}


def test_limits_at_the_edge_are_a_little_over_the_gateways_which_can_say_why() -> None:
    known = dynamic("middlewares")
    json_bytes = known["json-limit"]["buffering"]["maxRequestBodyBytes"]
    assert bodies.MAX_BYTES < json_bytes <= bodies.MAX_BYTES + 64 * 1024
    audio_bytes = known["audio-limit"]["buffering"]["maxRequestBodyBytes"]
    assert uploads.MAX_BODY_BYTES < audio_bytes <= uploads.MAX_FILE_BYTES + 1024 * 1024
    (upload,) = (router for router in api_routers() if router.matches("POST", "/api/transcribe-audio/"))
    assert "audio-limit" in chain(upload)


def test_every_router_of_the_api_has_the_edges_middlewares() -> None:
    for router in api_routers():
        assert chain(router)[:4] == EDGE, router


def test_with_origins_what_traefik_refuses_can_be_read_and_preflights_are_the_gateways_to_answer() -> None:
    for router in api_routers():
        with_cors = chain(router, "https://a.example,https://b.example")
        assert with_cors == (chain(router) if router == preflights() else ["cors", *chain(router)])
    assert dynamic("middlewares", "https://a.example,https://b.example")["cors"]["headers"] == {
        "accessControlAllowOriginList": ["https://a.example", "https://b.example"],
        "accessControlExposeHeaders": cors.RESPONSE_HEADERS.split(", "),
        "addVaryHeader": True,
    }


def test_a_client_is_its_address_and_not_what_it_says() -> None:
    for middleware in dynamic("middlewares").values():
        limit = middleware.get("rateLimit") or middleware.get("inFlightReq")
        if limit is not None:
            assert limit["sourceCriterion"] == {"ipStrategy": {"ipv6Subnet": 64}}
    for entry_point in ("web", "websecure"):
        assert static()["entryPoints"][entry_point]["forwardedHeaders"] == {"insecure": False}


def test_no_trace_begins_outside() -> None:
    removed = dynamic("middlewares")["strip-headers"]["headers"]["customRequestHeaders"]
    assert {"Traceparent", "Tracestate", "Baggage", "Forwarded"} <= removed.keys()
    assert set(removed.values()) == {""}


def test_plain_http_is_sent_away_to_https() -> None:
    redirect = routers()["redirect"]
    assert (redirect.entry_points, redirect.middlewares) == (["web"], ["redirect-to-https"])
    assert [name for name, router in routers().items() if router.entry_points != ["websecure"]] == ["redirect"]


def static() -> dict[str, Any]:
    """The plain install's static file."""
    document: dict[str, Any] = yaml.safe_load((TRAEFIK / "static.yaml").read_text())
    return document


def test_times_fit_those_of_the_gateway() -> None:
    timeouts = static()["entryPoints"]["websecure"]["transport"]["respondingTimeouts"]
    assert seconds(timeouts["readTimeout"]) > uploads.RECEIVE_SECONDS
    assert seconds(timeouts["writeTimeout"]) == 0
    (transport,) = dynamic("serversTransports").values()
    assert seconds(transport["forwardingTimeouts"]["responseHeaderTimeout"]) == 0
    # Who keeps an idle connection longer learns too late that the other has closed it.
    assert seconds(transport["forwardingTimeouts"]["idleConnTimeout"]) < server.KEEP_ALIVE_SECONDS


def seconds(duration: str) -> float:
    """A duration as Traefik writes it."""
    return float(duration.removesuffix("s"))


def test_heads_that_the_gateway_takes_pass_the_edge() -> None:
    limit = static()["entryPoints"]["websecure"]["http"]["maxHeaderBytes"]
    assert limit >= edge.MAX_HEADER_BYTES + edge.MAX_URL_BYTES


def test_access_logs_hold_no_text_and_no_token() -> None:
    fields = static()["accessLog"]["fields"]
    assert fields["names"] == {"RequestPath": "drop", "RequestLine": "drop"}
    assert fields["headers"] == {"defaultMode": "drop"}


# --- the two forms ---


def test_both_forms_have_the_same_routers(renderings: dict[str, Rendering]) -> None:
    kubernetes = [
        Router(
            route["spec"]["entryPoints"],
            rule["match"],
            [one["name"] for one in rule["middlewares"]],
            route["spec"]["tls"]["options"]["name"] if "tls" in route["spec"] else None,
        )
        for route in renderings["traefik"].of("IngressRoute")
        for rule in route["spec"]["routes"]
    ]
    assert sorted(map(repr, kubernetes)) == sorted(map(repr, routers().values()))


def test_both_forms_have_the_same_middlewares(renderings: dict[str, Rendering]) -> None:
    kubernetes = {name_of(one): one["spec"] for one in renderings["traefik"].of("Middleware")}
    inner = [one["name"] for one in kubernetes.pop("edge")["chain"]["middlewares"]]
    assert {**kubernetes, "edge": {"chain": {"middlewares": inner}}} == dynamic("middlewares")


def test_both_forms_have_the_same_cors(renderings: dict[str, Rendering]) -> None:
    rendering = renderings["all components"]
    kubernetes = {name_of(one): one["spec"] for one in rendering.of("Middleware")}
    told = rendering.environment(rendering.named("Deployment", "gateway"))
    plain = dynamic("middlewares", told["CORS_ALLOWED_ORIGINS"])
    assert kubernetes["cors"] == plain["cors"]
    assert [one["name"] for one in kubernetes["edge"]["chain"]["middlewares"]] == plain["edge"]["chain"]["middlewares"]


def test_origins_are_the_same_for_the_gateway_and_for_traefik(rendering: Rendering) -> None:
    told = rendering.environment(rendering.named("Deployment", "gateway")).get("CORS_ALLOWED_ORIGINS", "")
    listed = [
        origin
        for one in rendering.of("Middleware")
        for origin in one["spec"].get("headers", {}).get("accessControlAllowOriginList", [])
    ]
    assert ",".join(listed) == told


def test_both_forms_have_the_same_tls_and_transport(renderings: dict[str, Rendering]) -> None:
    rendering = renderings["traefik"]
    assert {name_of(one): one["spec"] for one in rendering.of("TLSOption")} == dynamic("options")
    assert {name_of(one): one["spec"] for one in rendering.of("ServersTransport")} == dynamic("serversTransports")


def test_the_charts_values_say_what_the_static_file_says() -> None:
    values, plain = yaml.safe_load((TRAEFIK / "kubernetes-values.yaml").read_text()), static()
    for entry_point in ("web", "websecure"):
        mine, theirs = plain["entryPoints"][entry_point], values["ports"][entry_point]
        assert theirs.get("forwardedHeaders") == mine.get("forwardedHeaders")
        assert theirs.get("http") == mine.get("http")
        assert _lower(theirs.get("transport")) == _lower(mine.get("transport"))
    assert values["accessLog"]["fields"] == plain["accessLog"]["fields"]


def _lower(document: Any) -> Any:
    """The chart spells one name with another letter's case."""
    if isinstance(document, dict):
        return {key.lower(): _lower(value) for key, value in document.items()}
    return document


def test_routes_lead_to_what_is_there(rendering: Rendering) -> None:
    middlewares, transports = rendering.names("Middleware"), rendering.names("ServersTransport")
    for route in rendering.of("IngressRoute"):
        if "tls" in route["spec"]:
            assert route["spec"]["tls"]["options"]["name"] in rendering.names("TLSOption")
        for rule in route["spec"]["routes"]:
            assert {one["name"] for one in rule["middlewares"]} <= middlewares
            (target,) = rule["services"]
            service = rendering.named("Service", target["name"])
            assert (target["name"], target["port"]) == ("gateway", "http")
            assert target["port"] in {port["name"] for port in service["spec"]["ports"]}
            assert target["serversTransport"] in transports


def test_an_overlay_puts_its_name_into_every_route_and_nowhere_else(
    renderings: dict[str, Rendering], tmp_path: Path
) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    shutil.copytree(K8S.parent / "monitoring", tmp_path / "monitoring")
    overlay = tmp_path / "k8s" / "overlays" / "production"
    file = overlay / "kustomization.yaml"
    file.write_text(file.read_text().replace(f"HOST={HOST}", "HOST=talk.example.org"))
    text = yaml.safe_dump_all(renderings["overlay production"].manifests)
    assert yaml.safe_dump_all(render(overlay)) == text.replace(f"Host(`{HOST}`)", "Host(`talk.example.org`)")
