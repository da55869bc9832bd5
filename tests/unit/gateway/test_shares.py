"""Sharing: with users, and by public link."""

import json
from typing import Any

import httpx
import pytest
from backendai.chat.v1 import chat_pb2 as pb
from backendai.common.v1 import common_pb2

from services.kit.errors import DomainError, Kind, PermissionDenied
from tests.unit.gateway.conftest import FakeServices
from tests.unit.gateway.samples import CHAT, NOON, NOON_TEXT, SESSION, a_session

LINK = "7c0f6d3e-54a1-4b53-9df7-0a3f6d1c2b4e"


class ShareWithOwner(DomainError):
    """As chat says it."""

    kind, reason, detail = Kind.INVALID, "SHARE_WITH_OWNER", "The session is its owner's already."


def a_share(user_id: str = "bob", permission: pb.Permission.ValueType = pb.PERMISSION_READ) -> pb.Share:
    return pb.Share(user_id=user_id, permission=permission, created_at=NOON)


async def test_a_new_share_is_201_and_a_changed_one_200(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["ShareSession"] = pb.ShareSessionResponse(share=a_share(), created=True)
    made = await client.post(f"{CHAT}share/", json={"user_id": "bob"})
    assert made.status_code == 201
    assert made.json() == {"user_id": "bob", "permission": "read", "created_at": NOON_TEXT}
    services.answers["ShareSession"] = pb.ShareSessionResponse(share=a_share("bob", pb.PERMISSION_WRITE))
    changed = await client.post(f"{CHAT}share/", json={"user_id": "bob", "permission": "write"})
    assert (changed.status_code, changed.json()["permission"]) == (200, "write")
    asked = services.requests("ShareSession")
    assert [(one.session_id, one.user_id, one.permission) for one in asked] == [
        (SESSION, "bob", pb.PERMISSION_READ),
        (SESSION, "bob", pb.PERMISSION_WRITE),
    ]


async def test_the_default_permission_is_the_same_request_as_naming_it(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["ShareSession"] = pb.ShareSessionResponse(share=a_share(), created=True)
    for body in ({"user_id": "bob"}, {"permission": "read", "user_id": "bob"}):
        await client.post(f"{CHAT}share/", json=body, headers={"Idempotency-Key": "k"})
    first, second = services.requests("ShareSession")
    assert first.idempotency_key == "k"
    assert first.request_fingerprint == second.request_fingerprint != b""


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"user_id": ""},
        {"user_id": "  "},
        {"user_id": None},
        {"user_id": 7},
        {"user_id": "x" * 256},
        {"user_id": "a\0b"},
        {"user_id": "bob", "permission": "owner"},
        {"user_id": "bob", "permission": None},
        {"user_id": "bob", "session_id": SESSION},
    ],
)
async def test_a_share_with_nobody_or_with_more_than_there_is_is_422(
    client: httpx.AsyncClient, services: FakeServices, body: Any
) -> None:
    refused = await client.post(f"{CHAT}share/", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "validation_error")
    assert not services.requests("ShareSession")


async def test_sharing_with_the_owner_is_422(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["ShareSession"] = ShareWithOwner()
    refused = await client.post(f"{CHAT}share/", json={"user_id": "alice"})
    assert (refused.status_code, refused.json()["code"]) == (422, "share_with_owner")


async def test_shares_are_listed_by_page(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["ListShares"] = pb.ListSharesResponse(
        shares=[a_share("bob"), a_share("eve", pb.PERMISSION_WRITE)],
        page=common_pb2.PageInfo(next_token="after:eve"),
    )
    listed = (await client.get(f"{CHAT}shares/?limit=2")).json()
    assert [(one["user_id"], one["permission"]) for one in listed["results"]] == [("bob", "read"), ("eve", "write")]
    await client.get(listed["next"])
    assert services.requests("ListShares")[1].page == common_pb2.PageRequest(limit=2, token="after:eve")


async def test_revoking_is_204(client: httpx.AsyncClient, services: FakeServices) -> None:
    revoked = await client.post(f"{CHAT}revoke-share/", json={"user_id": "bob"})
    assert (revoked.status_code, revoked.content) == (204, b"")
    assert services.requests("RevokeShare")[0].user_id == "bob"


async def test_who_may_read_only_may_not_share(client: httpx.AsyncClient, services: FakeServices) -> None:
    for name in ("ShareSession", "ListShares", "RevokeShare", "TogglePublic"):
        services.answers[name] = PermissionDenied()
    refusals = [
        await client.post(f"{CHAT}share/", json={"user_id": "bob"}),
        await client.get(f"{CHAT}shares/"),
        await client.post(f"{CHAT}revoke-share/", json={"user_id": "bob"}),
        await client.post(f"{CHAT}toggle-public/"),
    ]
    assert {(refused.status_code, refused.json()["code"]) for refused in refusals} == {(403, "permission_denied")}


@pytest.mark.parametrize("body", [None, b"{}"])
async def test_switching_the_link_answers_with_the_session(
    client: httpx.AsyncClient, services: FakeServices, body: bytes | None
) -> None:
    services.answers["TogglePublic"] = pb.TogglePublicResponse(session=a_session(shareable_link_id=LINK))
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k"} if body else {"Idempotency-Key": "k"}
    switched = await client.post(f"{CHAT}toggle-public/", content=body, headers=headers)
    assert switched.status_code == 200
    assert (switched.json()["is_public"], switched.json()["shareable_link_id"]) == (True, LINK)
    assert switched.headers["etag"] == '"3"'
    assert services.requests("TogglePublic")[0].idempotency_key == "k"


@pytest.mark.parametrize("body", [{"is_public": True}, [], None])
async def test_switching_takes_no_wishes(client: httpx.AsyncClient, services: FakeServices, body: Any) -> None:
    refused = await client.post(
        f"{CHAT}toggle-public/", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert refused.status_code == 422
    assert not services.requests("TogglePublic")
