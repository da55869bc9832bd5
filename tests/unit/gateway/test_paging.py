"""Lists: limits, filters, links and cursors that can't be made up."""

import re
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from backendai.billing.v1 import billing_pb2
from backendai.chat.v1 import chat_pb2
from backendai.common.v1 import common_pb2

from gateway.openapi import document
from gateway.server import Gateway
from services.kit.errors import InvalidCursor
from tests.unit.gateway.conftest import FakeServices, client_of
from tests.unit.gateway.samples import (
    CHAT,
    CHATS,
    CREDITS,
    MESSAGE,
    MESSAGES,
    OTHER_WORKSPACE,
    SESSION,
    WORKSPACE,
    a_session,
)

LISTS = {
    CHATS: "ListSessions",
    MESSAGES: "ListMessages",
    f"{CREDITS}usage/": "ListUsage",
    f"{CHAT}shares/": "ListShares",
}
BOTH = common_pb2.PageInfo(next_token="after:1", previous_token="before:2")


@pytest.fixture(autouse=True)
def pages(services: FakeServices) -> None:
    """Every list has neighbours."""
    services.answers["ListSessions"] = chat_pb2.ListSessionsResponse(sessions=[a_session()], page=BOTH)
    services.answers["ListMessages"] = chat_pb2.ListMessagesResponse(page=BOTH)
    services.answers["ListShares"] = chat_pb2.ListSharesResponse(page=BOTH)
    services.answers["ListUsage"] = billing_pb2.ListUsageResponse(page=BOTH)


@pytest.mark.parametrize("path", LISTS)
async def test_links_lead_to_the_neighbours(client: httpx.AsyncClient, services: FakeServices, path: str) -> None:
    page = (await client.get(f"{path}?limit=7")).json()
    assert set(page) == {"next", "previous", "results"}
    assert page["next"].startswith(f"{path}?")
    for link, token in ((page["next"], "after:1"), (page["previous"], "before:2")):
        assert (await client.get(link)).status_code == 200
        asked = services.requests(LISTS[path])[-1].page
        assert (asked.token, asked.limit) == (token, 7)


async def test_the_ends_of_a_list_have_no_links(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["ListSessions"] = chat_pb2.ListSessionsResponse()
    assert (await client.get(CHATS)).json() == {"next": None, "previous": None, "results": []}
    assert services.requests("ListSessions")[0].page == common_pb2.PageRequest(limit=50)


NO_LIMITS = ["0", "-1", "201", "1000000000", "1.5", "x", "", "1e2", "NaN", "9" * 5_000]
# Most of these are numbers to Python or to pydantic.
SPELLINGS = [
    "1_0",
    "+5",
    " 5",
    "5 ",
    "\t5",
    "5\n",
    "1.0",
    "５",
    "٥",
    "²",
    "0x5",
    "5,0",
    "--5",
    "true",
]


@pytest.mark.parametrize("limit", NO_LIMITS + SPELLINGS)
@pytest.mark.parametrize("path", LISTS)
async def test_a_limit_that_is_none_is_422(
    client: httpx.AsyncClient, services: FakeServices, path: str, limit: str
) -> None:
    answer = await client.get(path, params={"limit": limit})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/limit")
    assert services.requests(LISTS[path]) == []


def test_every_number_in_a_query_is_one_that_the_test_above_tries(gateway: Gateway) -> None:
    numbers = {
        (path, parameter["name"])
        for path, operations in document(gateway.app)["paths"].items()
        for operation in operations.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query" and re.search("'type': '(integer|number|boolean)'", str(parameter["schema"]))
    }
    ids = {WORKSPACE: "{workspace_id}", SESSION: "{session_id}"}
    tried = {re.sub("|".join(ids), lambda found: ids[found[0]], path) for path in LISTS}
    assert numbers == {(path, "limit") for path in tried}


@pytest.mark.parametrize("cursor", ["", "x", "after:1", "é", "\0", ".", "x" * 5_000, "ImFmdGVyOjEi.AAAA"])
@pytest.mark.parametrize("path", LISTS)
async def test_a_cursor_that_was_not_given_out_is_400(
    client: httpx.AsyncClient, services: FakeServices, path: str, cursor: str
) -> None:
    answer = await client.get(path, params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")
    assert services.requests(LISTS[path]) == []


def cursor_of(link: str) -> str:
    return parse_qs(urlsplit(link).query)["cursor"][0]


async def test_a_cursor_is_good_for_its_own_list_only(
    client: httpx.AsyncClient, gateway: Gateway, services: FakeServices
) -> None:
    cursor = cursor_of((await client.get(f"{CHATS}?status=active")).json()["next"])
    elsewhere = [
        CHATS,
        f"{CHATS}?status=archived",
        f"{CHATS}?status=active&scope=owned",
        f"{CHATS.replace(WORKSPACE, OTHER_WORKSPACE)}?status=active",
        f"{MESSAGES}?status=active",
    ]
    codes = [(await client.get(path, params={**parse_query(path), "cursor": cursor})).status_code for path in elsewhere]
    async with client_of(gateway, sub="mallory") as mallory:
        codes.append((await mallory.get(CHATS, params={"status": "active", "cursor": cursor})).status_code)
    assert codes == [400] * 6
    assert (await client.get(CHATS, params={"status": "active", "cursor": cursor})).status_code == 200


def parse_query(path: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}


async def test_links_keep_the_filters(client: httpx.AsyncClient, services: FakeServices) -> None:
    filters = {"scope": "shared", "status": "completed", "search": "räksmörgås & co"}
    link = (await client.get(CHATS, params=filters)).json()["next"]
    assert parse_query(link).items() >= filters.items()
    assert (await client.get(link)).status_code == 200
    request = services.requests("ListSessions")[-1]
    assert request.scope == chat_pb2.SESSION_SCOPE_SHARED
    assert request.status == chat_pb2.SESSION_STATUS_COMPLETED
    assert request.search == filters["search"]


@pytest.mark.parametrize(
    "query", ["scope=mine", "scope=", "status=deleted", "search=%00", "search=" + "x" * 201, "status=%ff"]
)
async def test_a_filter_that_is_none_is_422(client: httpx.AsyncClient, services: FakeServices, query: str) -> None:
    assert (await client.get(f"{CHATS}?{query}")).status_code == 422
    assert services.requests("ListSessions") == []


async def test_unknown_parameters_are_of_no_interest(client: httpx.AsyncClient, services: FakeServices) -> None:
    assert (await client.get(f"{CHATS}?utm_source=x&limit=5&a=%ff&b=%00")).status_code == 200


async def test_messages_come_in_either_order(client: httpx.AsyncClient, services: FakeServices) -> None:
    for query in ("", "?order=asc", "?order=desc"):
        await client.get(MESSAGES + query)
    assert [request.descending for request in services.requests("ListMessages")] == [False, False, True]
    assert services.requests("ListMessages")[0].session_id == SESSION
    assert (await client.get(f"{MESSAGES}?order=random")).status_code == 422


async def test_a_page_too_large_for_one_message_comes_shorter(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    large = chat_pb2.Message(id=MESSAGE, content="\U0001f600" * 100_000)

    def page(request: chat_pb2.ListMessagesRequest) -> chat_pb2.ListMessagesResponse:
        return chat_pb2.ListMessagesResponse(messages=[large] * request.page.limit, page=BOTH)

    services.answers["ListMessages"] = page
    answer = await client.get(MESSAGES)
    assert (answer.status_code, len(answer.json()["results"])) == (200, 25)
    assert parse_query(answer.json()["next"])["limit"] == "50"


async def test_a_token_that_the_service_does_not_know_is_400(client: httpx.AsyncClient, services: FakeServices) -> None:
    link = (await client.get(CHATS)).json()["next"]
    services.answers["ListSessions"] = InvalidCursor()
    answer = await client.get(link)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")
