"""The document describes what is served, and its page loads nothing from elsewhere."""

import re
from typing import Any

import httpx
import pytest

from gateway.openapi import document
from gateway.server import Gateway

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def described(gateway: Gateway) -> dict[str, Any]:
    return document(gateway.app)


def operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]


async def test_it_is_served_without_a_token(gateway: Gateway, described: dict[str, Any]) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway") as stranger:
        served = await stranger.get("/api/openapi.json")
    assert served.json() == described
    assert described["openapi"].startswith("3.1")


def test_every_operation_has_an_id_a_tag_a_summary_and_problems(described: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(set(ids)) == len(ids) >= 15
    for path, method, operation in operations(described):
        assert operation["tags"], path
        assert operation["summary"], path
        assert operation["description"], path
        good = [status for status in operation["responses"] if status.startswith("2")]
        assert good, (path, method)
        if path not in ("/healthz",):
            assert "application/problem+json" in operation["responses"]["default"]["content"], (path, method)
        for status in good:
            content = operation["responses"][status].get("content", {})
            if status != "204" and set(content) != {"text/event-stream"}:
                assert "$ref" in content["application/json"]["schema"], (path, method, status)


def test_what_can_be_streamed_says_so(described: dict[str, Any]) -> None:
    streamed = {
        operation["operationId"]
        for _, _, operation in operations(described)
        if "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    }
    assert streamed == {"send_message", "regenerate_answer", "get_task"}


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    for name in re.findall(r"#/components/schemas/([A-Za-z0-9_-]+)", str(described)):
        assert name in schemas


def test_only_probes_and_the_public_view_want_no_token(described: dict[str, Any]) -> None:
    assert described["security"] == [{"bearer": []}]
    public = {path for path, _, operation in operations(described) if operation.get("security") == []}
    assert public == {"/healthz", "/readyz", "/api/chats/shared/{link_id}/"}


def test_bodies_have_examples_and_take_no_other_fields(described: dict[str, Any]) -> None:
    for name in ("SessionIn", "MessageIn", "GrantIn"):
        schema = described["components"]["schemas"][name]
        assert schema["examples"]
        assert schema["additionalProperties"] is False


def test_headers_that_routes_read_are_described(described: dict[str, Any]) -> None:
    send = described["paths"]["/api/workspaces/{workspace_id}/chats/{session_id}/messages/"]["post"]
    assert {parameter["name"] for parameter in send["parameters"] if parameter["in"] == "header"} == {
        "Idempotency-Key",
        "Prefer",
    }
    assert {"201", "202"} <= set(send["responses"])


async def test_the_page_loads_only_what_is_here(gateway: Gateway) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway") as stranger:
        page = await stranger.get("/api/docs")
        links = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
        assets = [await stranger.get(link) for link in links]
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script>" not in page.text
    assert len(links) == 3
    assert [asset.status_code for asset in assets] == [200] * 3
    assert {asset.headers["content-type"].split(";")[0] for asset in assets} == {"text/css", "text/javascript"}
