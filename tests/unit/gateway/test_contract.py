"""The OpenAPI document as a promise: complete, current, and with examples that are true to their schemas."""

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gateway.app import routed_app
from gateway.openapi import document, render

KEPT = Path(__file__).parent.parent.parent.parent / "docs" / "openapi.json"
DOCUMENT = document(routed_app())
OPERATIONS = {
    operation["operationId"]: (path, operation)
    for path, item in DOCUMENT["paths"].items()
    for operation in item.values()
}
PRIVATE = sorted(name for name, (_, operation) in OPERATIONS.items() if operation.get("security") != [])


def resolved(reference: dict[str, Any]) -> dict[str, Any]:
    """What a $ref of the document leads to."""
    if "$ref" not in reference:
        return reference
    found: Any = DOCUMENT
    for step in reference["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    assert isinstance(found, dict)
    return found


def wrong_with(example: Any, schema: dict[str, Any]) -> list[str]:
    """Why a value does not fit a schema of the document."""
    validator = jsonschema_rs.validator_for({**schema, "components": DOCUMENT["components"]}, validate_formats=True)
    return [error.message for error in validator.iter_errors(example)]


def test_what_is_kept_in_docs_is_what_is_served() -> None:
    assert KEPT.read_bytes() == render(routed_app()), "run make openapi"


def test_every_example_fits_its_schema() -> None:
    examples = [
        (name, example, schema)
        for name, schema in DOCUMENT["components"]["schemas"].items()
        for example in schema.get("examples", ())
    ]
    examples += [
        (name, content["example"], content["schema"])
        for name, response in DOCUMENT["components"]["responses"].items()
        for content in response["content"].values()
    ]
    assert len(examples) > 30
    assert [(name, wrong) for name, example, schema in examples if (wrong := wrong_with(example, schema))] == []


@pytest.mark.parametrize("name", PRIVATE)
def test_every_private_operation_tells_of_bad_requests_bad_tokens_and_outages(name: str) -> None:
    _, operation = OPERATIONS[name]
    for status in ("400", "401", "503", "default"):
        assert "application/problem+json" in resolved(operation["responses"][status])["content"]
    path = OPERATIONS[name][0]
    if "{" in path:
        assert "404" in operation["responses"]
    if "requestBody" in operation:
        assert {"415", "422"} <= set(operation["responses"])


def test_an_unauthorized_answer_says_how_to_authenticate_and_an_outage_when_to_return() -> None:
    responses = DOCUMENT["components"]["responses"]
    assert "WWW-Authenticate" in responses["Unauthorized"]["headers"]
    assert "Retry-After" in responses["ServiceUnavailable"]["headers"]


def test_links_lead_to_operations_and_give_all_that_their_paths_take() -> None:
    count = 0
    for path, operation in OPERATIONS.values():
        for status, response in operation["responses"].items():
            for link in response.get("links", {}).values():
                count += 1
                target_path, _ = OPERATIONS[link["operationId"]]
                for name, expression in link["parameters"].items():
                    assert f"{{{name}}}" in target_path
                    assert expression.startswith("$response.body#/") or f"{{{expression.rpartition('.')[2]}}}" in path
                assert target_path.count("{") == len(link["parameters"]), (path, status)
    assert count > 20


def test_success_is_described_in_words() -> None:
    for name, (_, operation) in OPERATIONS.items():
        assert operation["summary"], name
        for status, response in operation["responses"].items():
            assert resolved(response)["description"] != "Successful Response", (name, status)
