"""What the OpenAPI document says beyond what the framework reads off the routes: failures, headers, links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from gateway.examples import EXAMPLES
from gateway.problems import MEDIA_TYPE

Document = dict[str, Any]

UNSAID = "Successful Response"  # the framework's word for what has none
METHODS = ("get", "put", "post", "delete", "patch")
# What every private route can answer: two tokens, none or a bad one, and a part of the system that is away.
PRIVATE_FAILURES = ("400", "401", "503")
# A failure of each status, by its code and words; routes have others of the same status too.
FAILURES: Mapping[int, tuple[str, str]] = {
    400: ("malformed_json", "The body is not valid JSON."),
    401: ("invalid_token", "The token is not valid, or not any more."),
    402: ("insufficient_credits", "The workspace's credits don't suffice."),
    403: ("permission_denied", "You may not do this."),
    404: ("not_found", "Not found."),
    408: ("request_timeout", "The body did not arrive in time."),
    409: ("task_in_progress", "The session is answering another message."),
    412: ("version_mismatch", "The session was changed meanwhile."),
    413: ("payload_too_large", "The body is larger than 1 MiB."),
    414: ("uri_too_long", "The URL is too long."),
    415: ("unsupported_media_type", "Send the body as application/json in UTF-8."),
    422: ("validation_error", "The request is not valid."),
    502: ("provider_error", "The provider answered with an error."),
    503: ("unavailable", "A part of the system is not reachable now. Try again."),
    504: ("provider_timeout", "The provider took too long to answer."),
}
EXAMPLE_REQUEST_ID = "0197a1b2-3c4d-7e5f-8a9b-0c1d2e3f4a5b"
TEXT = {"type": "string"}
FAILURE_HEADERS: Mapping[int, Document] = {
    401: {"WWW-Authenticate": {"description": "How to authenticate.", "required": True, "schema": TEXT}},
    503: {"Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer"}}},
}
TAG = {"ETag": {"description": "The version of the session's settings.", "required": True, "schema": TEXT}}
ACCEPTED = {
    "Location": {"description": "The path to poll.", "required": True, "schema": TEXT},
    "Preference-Applied": {"description": "What of `Prefer` was honoured.", "schema": TEXT},
}
HEADERS: Mapping[tuple[str, str], Document] = {
    ("create_session", "201"): {
        **TAG,
        "Location": {"description": "The session's path.", "required": True, "schema": TEXT},
    },
    ("get_session", "200"): TAG,
    ("replace_session", "200"): TAG,
    ("update_session", "200"): TAG,
    ("toggle_public", "200"): TAG,
    ("send_message", "200"): {"Location": ACCEPTED["Location"]},
    ("regenerate_answer", "200"): {"Location": ACCEPTED["Location"]},
    ("send_message", "202"): ACCEPTED,
    ("regenerate_answer", "202"): ACCEPTED,
}
# A share is what can be revoked, by whom it is of.
REVOKE = {
    "operationId": "revoke_share",
    "parameters": {"workspace_id": "$request.path.workspace_id", "session_id": "$request.path.session_id"},
    "requestBody": {"user_id": "$response.body#/user_id"},
}
# What answers bring that other routes take, by operation and status: path parameter -> where it stands.
BRINGS: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("create_session", "201"): {"session_id": "$response.body#/id"},
    ("send_message", "201"): {
        "message_id": "$response.body#/user_message/id",
        "task_id": "$response.body#/task_id",
    },
    ("send_message", "202"): {"task_id": "$response.body#/task_id"},
    ("regenerate_answer", "201"): {"task_id": "$response.body#/task_id"},
    ("regenerate_answer", "202"): {"task_id": "$response.body#/task_id"},
    ("toggle_public", "200"): {"link_id": "$response.body#/shareable_link_id"},
}


def complete(document: Document) -> Document:
    """The same document with every failure, its headers and examples, and with links between operations."""
    operations = {operation["operationId"]: (path, operation) for path, operation in _operations(document)}
    failures = {str(status): _failure(status) for status in FAILURES}
    document["components"]["responses"] = {_name(status): failure for status, failure in failures.items()}
    for name, example in EXAMPLES.items():
        document["components"]["schemas"][name]["examples"] = [example]
    for _, operation in operations.values():
        _complete_responses(operation, failures)
    for (source, status), headers in HEADERS.items():
        operations[source][1]["responses"][status].setdefault("headers", {}).update(headers)
    for (source, status), brought in BRINGS.items():
        path, operation = operations[source]
        operation["responses"][status]["links"] = {
            target: _link(target, target_path, brought)
            for target, (target_path, _) in operations.items()
            if _is_reached(path, target_path, brought)
        }
    for status in ("200", "201"):
        operations["share_session"][1]["responses"][status]["links"] = {"revoke_share": REVOKE}
    return document


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, item[method]


def _complete_responses(operation: Document, failures: Mapping[str, Document]) -> None:
    """Say each plain failure once for all operations, and what success is called."""
    responses: Document = operation["responses"]
    if operation.get("security") != []:
        for status in PRIVATE_FAILURES:
            responses.setdefault(status, {"content": {MEDIA_TYPE: {}}})
    for status, response in responses.items():
        if status in failures and set(response["content"]) == {MEDIA_TYPE}:
            responses[status] = {"$ref": f"#/components/responses/{_name(status)}"}
        elif status.startswith("2") and response["description"] == UNSAID:
            response["description"] = HTTPStatus(int(status)).phrase
    operation["responses"] = dict(sorted(responses.items()))


def _name(status: str) -> str:
    return HTTPStatus(int(status)).name.title().replace("_", "")


def _failure(status: int) -> Document:
    code, detail = FAILURES[status]
    example = {
        "type": f"urn:backendai:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": EXAMPLE_REQUEST_ID,
    }
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
    headers = {"headers": FAILURE_HEADERS[status]} if status in FAILURE_HEADERS else {}
    return {"description": HTTPStatus(status).phrase, **headers, "content": content}


def _named(path: str) -> set[str]:
    return {part[1:-1] for part in path.split("/") if part.startswith("{")}


def _is_reached(path: str, target: str, brought: Mapping[str, str]) -> bool:
    """Whether the target takes something that was brought, and nothing that is known from nowhere."""
    taken = _named(target)
    return bool(taken & set(brought)) and taken <= _named(path) | set(brought)


def _link(target: str, target_path: str, brought: Mapping[str, str]) -> Document:
    taken = sorted(_named(target_path))
    return {
        "operationId": target,
        "parameters": {name: brought.get(name, f"$request.path.{name}") for name in taken},
    }
