"""Sessions over REST: shapes, PUT and PATCH, ETags, and what each role may try."""

from typing import Any

import httpx
import pytest
from backendai.chat.v1 import chat_pb2
from google.protobuf.struct_pb2 import Struct

from gateway.server import Gateway
from services.kit.errors import DomainError, Kind, NotFound, PermissionDenied
from tests.unit.gateway.conftest import FakeServices, client_of
from tests.unit.gateway.samples import CHAT, CHATS, MESSAGES, NOON_TEXT, SESSION, STATUS, TASK, WORKSPACE, a_session

DOCUMENTED_BODY = {
    "name": "Research",
    "ai_provider": "google",
    "ai_model": "gemini-2.5-pro",
    "system_prompt": "You are a helpful research assistant.",
    "temperature": 0.7,
    "agent_framework": "langgraph",
}


class VersionMismatch(DomainError):
    """As chat raises it."""

    kind, reason, detail = Kind.PRECONDITION, "VERSION_MISMATCH", "The session was changed meanwhile."


async def test_a_session_has_all_documented_fields(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["GetSession"] = chat_pb2.GetSessionResponse(session=a_session())
    answer = await client.get(CHAT)
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"3"'
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {
        "id": SESSION,
        "workspace_id": WORKSPACE,
        "user_id": "alice",
        "name": None,
        "status": "active",
        "ai_provider": "local",
        "ai_model": "small",
        "system_prompt": None,
        "temperature": None,
        "max_tokens": None,
        "top_p": None,
        "frequency_penalty": None,
        "presence_penalty": None,
        "model_parameters": {},
        "agent_framework": "langgraph",
        "is_shared": False,
        "is_public": False,
        "shareable_link_id": None,
        "my_permission": "owner",
        "active_task_id": None,
        "message_count": 0,
        "created_at": NOON_TEXT,
        "updated_at": NOON_TEXT,
    }


async def test_a_session_shows_what_is_set(client: httpx.AsyncClient, services: FakeServices) -> None:
    parameters = Struct()
    parameters.update({"top_k": 40, "stop": ["a"], "nested": {"x": 0.5, "y": None}})
    session = a_session(
        settings={"name": "", "temperature": 0.0, "max_tokens": 7, "model_parameters": parameters},
        shareable_link_id=TASK,
        is_shared=True,
        my_permission=chat_pb2.PERMISSION_READ,
        active_task_id=TASK,
        message_count=9,
    )
    services.answers["GetSession"] = chat_pb2.GetSessionResponse(session=session)
    shown = (await client.get(CHAT)).json()
    assert (shown["name"], shown["temperature"], shown["max_tokens"]) == ("", 0.0, 7)
    assert shown["model_parameters"] == {"top_k": 40, "stop": ["a"], "nested": {"x": 0.5, "y": None}}
    assert "40.0" not in str(shown["model_parameters"])
    assert (shown["is_public"], shown["shareable_link_id"], shown["is_shared"]) == (True, TASK, True)
    assert (shown["my_permission"], shown["active_task_id"], shown["message_count"]) == ("read", TASK, 9)


async def test_creating_passes_on_what_was_set_and_nothing_else(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["CreateSession"] = chat_pb2.CreateSessionResponse(session=a_session())
    answer = await client.post(CHATS, json=DOCUMENTED_BODY, headers={"Idempotency-Key": "k1"})
    assert (answer.status_code, answer.headers["etag"]) == (201, '"3"')
    request = services.requests("CreateSession")[0]
    assert request.settings == chat_pb2.SessionSettings(**DOCUMENTED_BODY)  # type: ignore[arg-type]
    assert request.caller.user_id == "alice"
    assert (request.idempotency_key, len(request.request_fingerprint)) == ("k1", 32)


async def test_equal_bodies_have_equal_fingerprints(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["CreateSession"] = chat_pb2.CreateSessionResponse(session=a_session())
    for body in ('{"name":"a","status":"active"}', '{ "status": "active", "n\\u0061me": "a" }', '{"name":"b"}'):
        await client.post(CHATS, content=body, headers={"Content-Type": "application/json"})
    first, second, third = (request.request_fingerprint for request in services.requests("CreateSession"))
    assert first == second != third


async def test_put_replaces_everything_that_is_writable(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["UpdateSession"] = chat_pb2.UpdateSessionResponse(session=a_session())
    assert (await client.put(CHAT, json={"name": "New"})).status_code == 200
    request = services.requests("UpdateSession")[0]
    writable = {field.name for field in chat_pb2.SessionSettings.DESCRIPTOR.fields}
    assert set(request.update_mask.paths) == writable
    assert request.settings == chat_pb2.SessionSettings(name="New")


async def test_patch_changes_what_was_sent_and_null_clears(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["UpdateSession"] = chat_pb2.UpdateSessionResponse(session=a_session())
    await client.patch(CHAT, json={"name": None, "temperature": 0, "status": "archived", "model_parameters": {}})
    request = services.requests("UpdateSession")[0]
    assert set(request.update_mask.paths) == {"name", "temperature", "status", "model_parameters"}
    assert not request.settings.HasField("name")
    assert request.settings.HasField("temperature")
    assert request.settings.status == chat_pb2.SESSION_STATUS_ARCHIVED


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (None, 0),
        ("*", 0),
        ('"3"', 3),
        (' "3" ', 3),
        ('W/"3"', -1),
        ('"0"', -1),
        ('"abc"', -1),
        ("3", -1),
        ("garbage", -1),
        ('"99999999999999999999"', -1),
        ('"7", "3"', 3),
        ('"7", "8"', -1),
        ('W/"3", "7"', 7),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_if_match_becomes_the_version_that_chat_requires(
    client: httpx.AsyncClient, services: FakeServices, method: str, sent: str | None, expected: int
) -> None:
    services.answers["GetSession"] = chat_pb2.GetSessionResponse(session=a_session())
    services.answers["UpdateSession"] = chat_pb2.UpdateSessionResponse(session=a_session())
    headers = {"If-Match": sent} if sent else {}
    await client.request(method, CHAT, json={}, headers=headers)
    name = "DeleteSession" if method == "DELETE" else "UpdateSession"
    assert [request.if_version for request in services.requests(name)] == [expected]


async def test_a_version_that_does_not_match_is_412(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["UpdateSession"] = VersionMismatch()
    answer = await client.patch(CHAT, json={}, headers={"If-Match": '"2"'})
    assert (answer.status_code, answer.json()["code"]) == (412, "version_mismatch")


async def test_deleting_is_204_without_a_body(client: httpx.AsyncClient, services: FakeServices) -> None:
    answer = await client.delete(CHAT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers


async def test_a_viewer_may_not_create(gateway: Gateway, services: FakeServices) -> None:
    async with client_of(gateway, workspaces={WORKSPACE: "viewer"}) as viewer:
        answer = await viewer.post(CHATS)
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    assert services.requests("CreateSession") == []


async def test_a_guest_may_not_even_know_where_it_would_create(
    guest: httpx.AsyncClient, services: FakeServices
) -> None:
    assert (await guest.post(CHATS)).status_code == 404
    assert services.asked == []


async def test_a_guest_reaches_what_chat_lets_it_see(guest: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["GetSession"] = chat_pb2.GetSessionResponse(session=a_session())
    assert (await guest.get(CHAT)).status_code == 200
    assert services.requests("GetSession")[0].caller.role == 0


def without_request_id(answer: httpx.Response) -> tuple[Any, ...]:
    """All that a client can see of an answer, but for what names the request."""
    request_id = answer.headers["x-request-id"]
    headers = [(name, value) for name, value in answer.headers.raw if value.decode() != request_id]
    return answer.status_code, headers, answer.content.replace(request_id.encode(), b"")


async def test_unknown_foreign_and_malformed_ids_get_the_same_bytes(
    client: httpx.AsyncClient, guest: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["GetSession"] = NotFound("a text of chat's own")
    malformed = ["x", "0", f"{SESSION}0", f"{{{SESSION}}}", f"urn:uuid:{SESSION}", SESSION.replace("-", ""), "%00", "é"]
    paths = [CHAT, *(f"{CHATS}{text}/" for text in malformed), CHAT.replace(WORKSPACE, "nope"), "/api/nothing/here/"]
    answers = [without_request_id(await asking.get(path)) for asking in (client, guest) for path in paths]
    assert answers[0][0] == 404
    assert len({repr(answer) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", CHAT, None),
        ("PUT", CHAT, {}),
        ("PATCH", CHAT, {}),
        ("DELETE", CHAT, None),
        ("GET", MESSAGES, None),
        ("POST", MESSAGES, {"content": "x"}),
        ("GET", f"{MESSAGES}{TASK}/", None),
        ("GET", STATUS, None),
        ("DELETE", STATUS, None),
    ],
)
async def test_what_chat_does_not_show_is_404_on_every_route(
    client: httpx.AsyncClient, services: FakeServices, method: str, path: str, body: Any
) -> None:
    rpcs = ["GetSession", "UpdateSession", "DeleteSession", "ListMessages", "SendMessage", "GetMessage", "GetTask"]
    services.answers.update(dict.fromkeys([*rpcs, "CancelTask"], NotFound()))
    shown = await client.request(method, path, json=body)
    hidden = await client.request(method, path.replace(SESSION, "no-uuid"), json=body)
    assert without_request_id(shown) == without_request_id(hidden)
    assert shown.status_code == 404


async def test_ids_reach_chat_in_their_canonical_form(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["GetSession"] = chat_pb2.GetSessionResponse(session=a_session())
    assert (await client.get(f"/api/workspaces/{WORKSPACE.upper()}/chats/{SESSION.upper()}/")).status_code == 200
    request = services.requests("GetSession")[0]
    assert (request.caller.workspace_id, request.caller.role, request.session_id) == (WORKSPACE, 4, SESSION)


async def test_who_can_see_but_may_not_gets_403(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["UpdateSession"] = PermissionDenied()
    answer = await client.patch(CHAT, json={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\tb"])
async def test_an_idempotency_key_that_is_not_one_is_400(
    client: httpx.AsyncClient, services: FakeServices, key: str
) -> None:
    for path, body in ((CHATS, {}), (MESSAGES, {"content": "x"})):
        answer = await client.post(path, json=body, headers=[("Idempotency-Key", key.encode())])  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_idempotency_key")
    assert [name for name, _ in services.asked] == ["OpenAccount"]
