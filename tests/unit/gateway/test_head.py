"""HEAD: GET's status and headers without the body, wherever GET reads."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2

from gateway.app import routed_app
from gateway.server import Gateway
from tests.unit.gateway.conftest import FakeServices, served
from tests.unit.gateway.raw import Answer, exchange, read_answer
from tests.unit.gateway.samples import (
    CHATS,
    MESSAGE,
    SESSION,
    STATUS,
    TASK,
    TRANSLATE,
    WORKSPACE,
    a_completed_task,
    a_message,
    a_session,
    token,
)

LINK = "7c0f6d3e-54a1-4b53-9df7-0a3f6d1c2b4e"
IDS = {"workspace_id": WORKSPACE, "session_id": SESSION, "message_id": MESSAGE, "task_id": TASK, "link_id:path": LINK}
DOCUMENTATION = ["/api/docs", "/api/docs/start.js", "/api/docs/swagger-ui.css", "/api/openapi.json"]
# Its GET spends credits.
PAID = "/api/workspaces/{workspace_id}/translate/"
READ = sorted(
    {
        str(getattr(route, "path", ""))
        for route in routed_app().routes
        if "GET" in (getattr(route, "methods", None) or ()) and getattr(route, "path", "") != PAID
    }
    | set(DOCUMENTATION)
)
OWN = ("x-request-id",)


@pytest.fixture
async def port(gateway: Gateway, services: FakeServices) -> AsyncIterator[int]:
    services.answers |= {
        "ListSessions": chat_pb2.ListSessionsResponse(sessions=[a_session()]),
        "GetSession": chat_pb2.GetSessionResponse(session=a_session()),
        "ListMessages": chat_pb2.ListMessagesResponse(messages=[a_message()]),
        "GetMessage": chat_pb2.GetMessageResponse(message=a_message()),
        "GetTask": chat_pb2.GetTaskResponse(task=a_completed_task(), user_message=a_message()),
        "GetPublicSession": chat_pb2.GetPublicSessionResponse(name="Paris"),
        "GetCredits": billing_pb2.GetCreditsResponse(balance_nano=1),
    }
    async with served(gateway) as port:
        yield port


async def ask(port: int, method: str, path: str, *headers: str) -> Answer:
    """One answer. The request after a HEAD on the same connection shows that no body came with it."""
    lines = (f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token()}", *headers)
    request = "\r\n".join([*lines, "", ""]).encode()
    if method != "HEAD":
        return await exchange(port, request)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await read_answer(reader, has_body=False)
    assert (await read_answer(reader)).body == b'{"status":"ok"}'
    writer.close()
    return answer


def headers_of(answer: Answer) -> dict[str, str]:
    """All that do not differ from request to request."""
    return {name: value for name, value in answer.headers.items() if name not in OWN}


@pytest.mark.parametrize("path", READ)
async def test_head_brings_what_get_brings_but_the_body(port: int, path: str) -> None:
    target = re.sub(r"\{([^}]+)\}", lambda found: IDS[found[1]], path)
    get, head = await ask(port, "GET", target), await ask(port, "HEAD", target)
    assert get.status == 200
    assert int(get.headers["content-length"]) == len(get.body) > 0
    assert (head.status, headers_of(head)) == (get.status, headers_of(get))


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (CHATS.rstrip("/"), ()),
        (f"{CHATS}?limit=0", ()),
        (f"{CHATS}x/", ()),
        ("/nothing/", ()),
        (CHATS, ("Authorization: Bearer x",)),
        (f"/api/chats/shared/{LINK}/", ("Accept: text/html",)),
        ("/api/chats/shared/x/", ("Accept: text/html",)),
        (CHATS, ('If-None-Match: "1"',)),
        (CHATS, (f"X: {'x' * 20_000}",)),
    ],
)
async def test_a_head_that_fails_fails_as_the_get_does(port: int, path: str, headers: tuple[str, ...]) -> None:
    get, head = await ask(port, "GET", path, *headers), await ask(port, "HEAD", path, *headers)
    assert (head.status, headers_of(head)) == (get.status, headers_of(get))


async def test_head_of_a_task_follows_nothing(port: int) -> None:
    polled = await ask(port, "GET", STATUS)
    head = await ask(port, "HEAD", STATUS, "Accept: text/event-stream")
    assert (head.status, headers_of(head)) == (200, headers_of(polled))


async def test_head_spends_no_credits(port: int, services: FakeServices) -> None:
    head = await ask(port, "HEAD", f"{TRANSLATE}?text=x&target=de")
    assert (head.status, head.headers["allow"]) == (405, "GET")
    assert services.requests("TranslateText") == []


async def test_the_methods_of_a_path_name_head(port: int) -> None:
    refused = await ask(port, "OPTIONS", CHATS)
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, POST")
