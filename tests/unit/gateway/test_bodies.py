"""Bodies that fight back: each gets its 4xx as a problem, and no service hears of it."""

import json
from typing import Any

import httpx
import pytest
from backendai.chat.v1 import chat_pb2

from gateway.server import Gateway
from tests.unit.gateway.conftest import FakeServices
from tests.unit.gateway.samples import CHAT, CHATS, CREDITS, MESSAGES, a_session

JSON = {"Content-Type": "application/json"}


async def refused(client: httpx.AsyncClient, services: FakeServices, status: int, answer: httpx.Response) -> Any:
    """The problem, once it is sure that nothing was done."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "code", "request_id"} <= set(problem)
    assert problem["type"] == f"urn:backendai:problem:{problem['code']}"
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert [name for name, _ in services.asked if name != "OpenAccount"] == []
    return problem


@pytest.mark.parametrize(
    "body",
    [
        b'{"content": "x"',
        b"{",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"[" * 100_000,
        b'{"model_parameters":' + b'{"a":' * 100_000,
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": -Infinity}',
        b'{"max_tokens": ' + b"9" * 5_000 + b"}",
        b'{"name": "a", "name": "b"}',
        b'{"name": "a", "n\\u0061me": "b"}',
        b'{"name": "\\ud800"}',
        b'{"name": "\\udc00x"}',
        b'{"name": "\xff"}',
        b'{"name": "\xed\xa0\x80"}',
        b'{"name": "a\x00b"}',
        b"{'name': 1}",
        b"{name: 1}",
        b'{"name": "x",}',
        b"// {}",
        b"\x00",
        b'{"max_tokens": 01}',
    ],
)
async def test_what_is_not_json_is_400(client: httpx.AsyncClient, services: FakeServices, body: bytes) -> None:
    problem = await refused(client, services, 400, await client.post(CHATS, content=body, headers=JSON))
    assert problem["code"] == "malformed_json"


@pytest.mark.parametrize("body", ["[]", "null", "1", '"x"', "true", "[{}]"])
@pytest.mark.parametrize(("method", "path"), [("POST", CHATS), ("PUT", CHAT), ("PATCH", CHAT), ("POST", MESSAGES)])
async def test_what_is_no_object_is_422(
    client: httpx.AsyncClient, services: FakeServices, method: str, path: str, body: str
) -> None:
    await refused(client, services, 422, await client.request(method, path, content=body, headers=JSON))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "1"),
        ("temperature", True),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.0),
        ("max_tokens", "1"),
        ("max_tokens", True),
        ("max_tokens", 2**63),
        ("top_p", 1.1),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("name", "x" * 256),
        ("name", 7),
        ("name", "a\0b"),
        ("status", "deleted"),
        ("status", None),
        ("ai_provider", "acme"),
        ("ai_provider", None),
        ("ai_model", ""),
        ("ai_model", "x" * 101),
        ("ai_model", None),
        ("ai_model", "a\0b"),
        ("agent_framework", "autogen"),
        ("agent_framework", None),
        ("system_prompt", "x" * 100_001),
        ("system_prompt", "\0"),
        ("model_parameters", []),
        ("model_parameters", None),
        ("model_parameters", {"a": "x" * 17_000}),
        ("model_parameters", {"a": "\0"}),
        ("model_parameters", {"\0": 1}),
        ("model_parameters", {"a": 2**53}),
        ("model_parameters", {"a": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}),
        ("user_id", "mallory"),
        ("workspace_id", "x"),
        ("is_public", True),
        ("shareable_link_id", "x"),
        ("credits", "1000"),
        ("id", "x"),
        ("", 1),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", CHATS), ("PUT", CHAT), ("PATCH", CHAT)])
async def test_a_wrong_field_is_422_and_pointed_at(
    client: httpx.AsyncClient, services: FakeServices, method: str, path: str, field: str, value: Any
) -> None:
    problem = await refused(client, services, 422, await client.request(method, path, json={field: value}))
    assert problem["code"] == "validation_error"
    assert problem["errors"][0]["pointer"] == f"/{field}"
    assert problem["errors"][0]["detail"]


@pytest.mark.parametrize("number", ["1e400", "-1e400"])
@pytest.mark.parametrize("where", ['{"temperature": %s}', '{"model_parameters": {"a": [%s]}}'])
async def test_a_number_that_no_float_holds_is_422(
    client: httpx.AsyncClient, services: FakeServices, where: str, number: str
) -> None:
    await refused(client, services, 422, await client.post(CHATS, content=where % number, headers=JSON))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"content": ""},
        {"content": " \n\t\u2003"},
        {"content": None},
        {"content": 7},
        {"content": ["x"]},
        {"content": "x" * 100_001},
        {"content": "a\0b"},
        {"content": "x", "role": "system"},
        {"content": "x", "role": "assistant"},
        {"content": "x", "role": "tool"},
        {"content": "x", "role": None},
        {"content": "x", "tool_calls": []},
        {"content": "x", "tool_call_id": "x"},
        {"content": "x", "user_id": "mallory"},
        {"content": "x", "sequence_number": 1},
    ],
)
async def test_a_message_that_is_not_one_is_422(
    client: httpx.AsyncClient, services: FakeServices, body: dict[str, Any]
) -> None:
    await refused(client, services, 422, await client.post(MESSAGES, json=body))


@pytest.mark.parametrize(
    "text",
    [
        "e" + "\u0301" * 10_000,
        "\u202eright to left\u202c",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        " blanks around \n",
        "\\u0000 as text",
        "<script>alert(1)</script>",
        "x" * 100_000,
        "\ufeff\uffff\u200b",
    ],
)
async def test_any_text_reaches_chat_verbatim(client: httpx.AsyncClient, services: FakeServices, text: str) -> None:
    await client.post(MESSAGES, json={"role": "user", "content": text})
    assert services.requests("SendMessage")[0].content == text


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": "text/json"},
        {**JSON, "Content-Encoding": "gzip"},
        {**JSON, "Content-Encoding": "br"},
    ],
)
async def test_a_body_that_is_not_sent_as_json_is_415(
    client: httpx.AsyncClient, services: FakeServices, headers: dict[str, str]
) -> None:
    request = client.build_request("POST", CHATS, content=b"{}", headers=headers)
    problem = await refused(client, services, 415, await client.send(request))
    assert problem["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "sent",
    [
        "application/json",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "APPLICATION/JSON",
        "application/merge-patch+json",
    ],
)
async def test_json_may_say_its_type_in_other_ways(
    client: httpx.AsyncClient, services: FakeServices, sent: str
) -> None:
    services.answers["UpdateSession"] = chat_pb2.UpdateSessionResponse(session=a_session())
    answer = await client.patch(CHAT, content=b"{}", headers={"Content-Type": sent, "Content-Encoding": "identity"})
    assert answer.status_code == 200


async def test_a_body_over_1_mib_is_413_by_its_declared_length(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    problem = await refused(client, services, 413, await client.post(CHATS, content=b" " * (2**20 + 1), headers=JSON))
    assert problem["code"] == "payload_too_large"


async def test_a_million_keys_are_refused_without_listing_them(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    body = json.dumps({f"k{number}": 1 for number in range(60_000)})
    answer = await client.post(CHATS, content=body, headers=JSON)
    assert "errors" not in await refused(client, services, 422, answer)
    assert len(answer.content) < 5_000


async def test_a_long_unknown_name_is_not_echoed_at_length(client: httpx.AsyncClient, services: FakeServices) -> None:
    answer = await client.post(CHATS, json={"x" * 100_000: 1})
    await refused(client, services, 422, answer)
    assert len(answer.content) < 5_000


async def test_what_was_sent_is_not_echoed(client: httpx.AsyncClient, services: FakeServices) -> None:
    answer = await client.post(CHATS, json={"ai_provider": "a-secret", "name": 31337})
    problem = await refused(client, services, 422, answer)
    assert "a-secret" not in str(problem["errors"])
    assert "31337" not in str(problem["errors"])


@pytest.mark.parametrize(("method", "path"), [("PUT", CHAT), ("PATCH", CHAT), ("POST", MESSAGES)])
async def test_a_missing_body_is_422(client: httpx.AsyncClient, services: FakeServices, method: str, path: str) -> None:
    await refused(client, services, 422, await client.request(method, path))


async def test_a_session_needs_no_body_and_no_type(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["CreateSession"] = chat_pb2.CreateSessionResponse(session=a_session())
    assert (await client.post(CHATS)).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"amount": 10},
        {"amount": "0"},
        {"amount": "-1"},
        {"amount": "1e3"},
        {"amount": "NaN"},
        {"amount": "Infinity"},
        {"amount": "1.0000000001"},
        {"amount": "1000000001"},
        {"amount": "٣"},
        {"amount": " 1"},
        {"amount": "1\n"},
        {"amount": "1", "reason": "x" * 501},
        {"amount": "1", "reason": "a\0"},
        {"amount": "1", "workspace_id": "x"},
    ],
)
async def test_a_grant_that_is_not_one_is_422(
    client: httpx.AsyncClient, services: FakeServices, body: dict[str, Any]
) -> None:
    await refused(client, services, 422, await client.post(f"{CREDITS}grants/", json=body))


async def test_bodies_are_not_read_for_strangers(gateway: Gateway, services: FakeServices) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway") as stranger:
        await refused(stranger, services, 401, await stranger.post(CHATS, content=b"{", headers=JSON))
