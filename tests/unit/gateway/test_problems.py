"""Every failure is a problem: of services, of the network behind us, of our own."""

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from backendai.chat.v1 import chat_pb2

from gateway.cors import Cors
from gateway.edge import Edge
from gateway.server import Gateway
from services.kit.errors import DomainError, Kind
from tests.unit.gateway.conftest import DEAD, FakeServices, client_of, settings_for, until
from tests.unit.gateway.samples import CHATS, STATUS, WORKSPACE


def an_error(kind: Kind, reason: str) -> DomainError:
    made = type("Made", (DomainError,), {"kind": kind, "reason": reason, "detail": "As the service says."})
    error: DomainError = made(secret="not for callers")
    return error


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        (Kind.INVALID, "MODEL_UNKNOWN", 422),
        (Kind.INVALID, "PROVIDER_NOT_CONFIGURED", 422),
        (Kind.INVALID, "IDEMPOTENCY_KEY_REUSED", 422),
        (Kind.INVALID, "INVALID_CURSOR", 400),
        (Kind.FORBIDDEN, "PERMISSION_DENIED", 403),
        (Kind.CONFLICT, "TASK_IN_PROGRESS", 409),
        (Kind.PRECONDITION, "SESSION_NOT_ACTIVE", 409),
        (Kind.PRECONDITION, "NOTHING_TO_REGENERATE", 409),
        (Kind.PRECONDITION, "INSUFFICIENT_CREDITS", 402),
        (Kind.PRECONDITION, "PRICE_UNKNOWN", 422),
        (Kind.PRECONDITION, "VERSION_MISMATCH", 412),
        (Kind.EXHAUSTED, "TOO_MANY", 429),
    ],
)
async def test_a_services_reason_is_the_problems_code(
    client: httpx.AsyncClient, services: FakeServices, kind: Kind, reason: str, status: int
) -> None:
    services.answers["ListSessions"] = an_error(kind, reason)
    answer = await client.get(CHATS)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.pop("title")
    assert problem == {
        "type": f"urn:backendai:problem:{reason.lower()}",
        "status": status,
        "detail": "As the service says.",
        "code": reason.lower(),
        "request_id": answer.headers["x-request-id"],
    }


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        (grpc.StatusCode.UNAVAILABLE, 503, "unavailable"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
        (grpc.StatusCode.INTERNAL, 500, "internal_error"),
        (grpc.StatusCode.UNAUTHENTICATED, 500, "internal_error"),
        (grpc.StatusCode.UNIMPLEMENTED, 500, "internal_error"),
    ],
)
async def test_a_call_that_failed_without_a_reason_tells_no_inner_text(
    client: httpx.AsyncClient, services: FakeServices, code: grpc.StatusCode, status: int, word: str
) -> None:
    services.answers["ListSessions"] = code
    answer = await client.get(CHATS)
    assert (answer.status_code, answer.json()["code"]) == (status, word)
    assert "driver" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_services_that_are_not_there_are_503() -> None:
    alone = Gateway(settings_for(DEAD))
    async with client_of(alone) as client:
        answers = [await client.get(path) for path in (CHATS, STATUS, "/api/models/", "/readyz")]
        alive = await client.get("/healthz")
    await alone.close()
    assert [answer.status_code for answer in answers] == [503] * 4
    assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    assert alive.status_code == 200


async def test_a_defect_of_ours_is_a_500_that_tells_nothing(
    client: httpx.AsyncClient, gateway: Gateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any, request: Any, **__: Any) -> None:
        raise ZeroDivisionError(request.headers["x-sent"])

    monkeypatch.setattr("gateway.cursors.Cursors.listing", broken)
    answer = await client.get(CHATS, headers={"X-Sent": "a secret of the caller's"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    logged = capsys.readouterr().out
    assert "ZeroDivisionError" in logged
    assert "a secret of the caller's" not in answer.text + logged


@pytest.mark.parametrize("path", ["/", "/api", "/api/", "//", "/api//models/", "/healthz/x", "/api/docs/../x", "/é"])
async def test_a_path_that_is_none_is_404(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(f"http://gateway{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("TRACE", CHATS, "GET, HEAD, POST"),
        ("DELETE", CHATS, "GET, HEAD, POST"),
        ("OPTIONS", CHATS, "GET, HEAD, POST"),
        ("POST", f"{CHATS}{WORKSPACE}/", "DELETE, GET, HEAD, PATCH, PUT"),
        ("PUT", STATUS, "DELETE, GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_lacks_is_405_and_names_those_it_has(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("path", "location"),
    [
        (CHATS.rstrip("/"), CHATS),
        (f"{CHATS.rstrip('/')}?limit=5&search=a%20b", f"{CHATS}?limit=5&search=a%20b"),
        ("/api/models", "/api/models/"),
        ("/healthz/", "/healthz"),
        ("/api/docs/", "/api/docs"),
        (STATUS.rstrip("/"), STATUS),
    ],
)
async def test_the_other_trailing_slash_is_307_to_the_documented_path(
    client: httpx.AsyncClient, path: str, location: str
) -> None:
    for method in ("GET", "POST"):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.headers["location"]) == (307, location)


@pytest.mark.parametrize("path", ["//evil.example", "//evil.example/api/models", "/%2f%2fevil.example"])
async def test_no_path_redirects_to_another_host(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"http://gateway{path}")).status_code == 404


@pytest.mark.parametrize("sent", ["abc-123", "0197a1b2-0000-7000-8000-000000000001", "a:b.c_d"])
async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient, sent: str) -> None:
    answer = await client.get("/nothing", headers={"X-Request-Id": sent})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "é", 'a"b', "a\tb"])
async def test_another_request_id_is_replaced(client: httpx.AsyncClient, sent: str) -> None:
    answer = await client.get("/nothing", headers=[("X-Request-Id", sent.encode())])  # type: ignore[arg-type]
    assert answer.headers["x-request-id"] == answer.json()["request_id"] != sent


async def test_logs_tell_of_requests_but_not_what_was_in_them(
    client: httpx.AsyncClient, services: FakeServices, capsys: pytest.CaptureFixture[str]
) -> None:
    await client.post(f"{CHATS}?search=hush", json={"name": "a secret name"}, headers={"X-Request-Id": "r-1"})
    logged = capsys.readouterr().out
    assert "r-1" in logged
    assert "/api/workspaces/{workspace_id}/chats/" in logged
    for secret in ("a secret name", "hush", WORKSPACE, "eyJ"):
        assert secret not in logged


async def test_too_many_requests_at_once_are_503(gateway: Gateway, services: FakeServices) -> None:
    may_end = asyncio.Event()

    async def slowly() -> chat_pb2.ListSessionsResponse:
        await may_end.wait()
        return chat_pb2.ListSessionsResponse()

    services.answers["ListSessions"] = lambda _: slowly()
    gateway.app.user_middleware.clear()
    gateway.app.add_middleware(Edge, draining=gateway.draining, cors=Cors(), max_requests=2)
    async with client_of(gateway) as client:
        running = [asyncio.create_task(client.get(CHATS)) for _ in range(2)]
        await until(lambda: len(services.requests("ListSessions")) == 2)
        refused, probe = await client.get(CHATS), await client.get("/healthz")
        may_end.set()
        done = await asyncio.gather(*running)
        after = await client.get(CHATS)
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert [answer.status_code for answer in (probe, *done, after)] == [200] * 4
