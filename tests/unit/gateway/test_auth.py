"""Who is let in, and how the others are refused."""

import base64
import json
import random
import time
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from gateway.server import Gateway
from tests.unit.gateway.conftest import FakeServices, client_of, settings_for, unsigned
from tests.unit.gateway.samples import CHATS, OTHER_WORKSPACE, SECRET, WORKSPACE, token


async def asking(gateway: Gateway, *authorization: str) -> httpx.Response:
    """The list of chats, with these Authorization headers."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway") as client:
        return await client.get(CHATS, headers=[(b"authorization", value.encode()) for value in authorization])


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "JWT", "jwt"])
async def test_a_valid_token_is_taken_under_either_scheme(gateway: Gateway, scheme: str) -> None:
    assert (await asking(gateway, f"{scheme} {token()}")).status_code == 200


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic YTpi", "Token x", "Bearer\tx"])
async def test_no_token_is_401_and_says_how_to_send_one(gateway: Gateway, value: str) -> None:
    refused = await asking(gateway, value)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["code"] == "unauthenticated"


async def test_no_header_is_401(gateway: Gateway) -> None:
    assert (await asking(gateway)).status_code == 401


async def test_two_authorization_headers_are_400(gateway: Gateway) -> None:
    refused = await asking(gateway, f"Bearer {token()}", f"Bearer {token()}")
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")


def base64_json(document: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def alg_none() -> str:
    return f"{base64_json({'alg': 'none'})}.{base64_json({'sub': 'alice', 'exp': time.time() + 60})}."


NOW = int(time.time())
BAD_TOKENS = {
    "of another secret": token(secret="x" * 32),
    "alg none": alg_none(),
    "HS512": token(algorithm="HS512", secret=SECRET * 2),
    "expired": token(exp=NOW - 1),
    "without exp": token(exp=None),
    "without sub": token(sub=None),
    "not yet valid": token(nbf=NOW + 86_400),
    "issued in the future": token(iat=NOW + 86_400),
    "expired within the leeway": token(exp=NOW - 30),
    "iat is no number": unsigned('{"alg":"HS256"}', '{"sub":"alice","exp":99999999999,"iat":NaN}'),
    "exp is null": unsigned('{"alg":"HS256"}', '{"sub":"alice","exp":null}'),
    "an empty crit": token(headers={"crit": []}),
    "exp is a text": unsigned('{"alg":"HS256"}', '{"sub":"alice","exp":"99999999999"}'),
    "exp is a boolean": unsigned('{"alg":"HS256"}', '{"sub":"alice","exp":true}'),
    "exp is infinite": unsigned('{"alg":"HS256"}', '{"sub":"alice","exp":Infinity}'),
    "exp is 1e999": unsigned('{"alg":"HS256"}', '{"sub":"alice","exp":1e999}'),
    "nbf is infinite": unsigned('{"alg":"HS256"}', '{"sub":"alice","exp":99999999999,"nbf":1e999}'),
    "iat is a list": unsigned('{"alg":"HS256"}', '{"sub":"alice","exp":99999999999,"iat":[]}'),
    "sub is a number": unsigned('{"alg":"HS256"}', '{"sub":7,"exp":99999999999}'),
    "sub is empty": token(sub=""),
    "sub is too long": token(sub="x" * 256),
    "sub with NUL": token(sub="a\0b"),
    "sub with a lone surrogate": unsigned('{"alg":"HS256"}', '{"sub":"\\ud800","exp":99999999999}'),
    "claims are a list": unsigned('{"alg":"HS256"}', "[]"),
    "claims are deep": unsigned('{"alg":"HS256"}', "[" * 5_000),
    "header is a list": unsigned("[]", '{"sub":"alice","exp":99999999999}'),
    "alg is a list": unsigned('{"alg":["HS256"]}', '{"sub":"alice","exp":99999999999}'),
    "unknown crit": token(headers={"crit": ["unknown"], "unknown": 1}),
    "detached payload": token(headers={"b64": False, "crit": ["b64"]}),
    "workspaces are a list": token(workspaces=[WORKSPACE]),
    "workspaces are a text": token(workspaces="all"),
    "a workspace is no UUID": token(workspaces={"acme": "owner"}),
    "workspaces are false": token(workspaces=False),
    "workspaces are an empty text": token(workspaces=""),
    "a role is unknown": token(workspaces={WORKSPACE: "root"}),
    "a role is a list": token(workspaces={WORKSPACE: ["owner"]}),
    "a workspace named twice": token(workspaces={WORKSPACE: "viewer", WORKSPACE.upper(): "owner"}),
    "not a token": "a.b.c",
    "one part": "abc",
    "not ASCII": "é",
    "empty parts": "..",
}


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_a_bad_token_is_401(gateway: Gateway, services: FakeServices, bad: str) -> None:
    refused = await asking(gateway, f"Bearer {bad}")
    assert refused.status_code == 401
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert refused.json()["code"] == "invalid_token"
    assert services.asked == []


GOOD_TOKENS = {
    "times with microseconds": token(iat=NOW - 0.25, nbf=NOW - 0.25, exp=NOW + 14_400.123456),
    "times that are null": unsigned('{"alg":"HS256"}', f'{{"sub":"alice","exp":{NOW + 14_400},"iat":null,"nbf":null}}'),
    "an audience in a list": token(aud=["chat", "other"]),
    "an access token": token(headers={"typ": "at+jwt"}),
    "without a type": token(headers={"typ": None}),
    "a jti that is a number": unsigned('{"alg":"HS256"}', f'{{"sub":"alice","exp":{NOW + 14_400},"jti":7}}'),
}


@pytest.mark.parametrize("good", GOOD_TOKENS.values(), ids=GOOD_TOKENS.keys())
async def test_tokens_as_issuers_write_them_are_taken(gateway: Gateway, good: str) -> None:
    assert (await asking(gateway, f"Bearer {good}")).status_code == 200


async def test_a_time_may_be_a_minute_ahead_and_no_more(gateway: Gateway) -> None:
    soon, later = int(time.time()) + 55, int(time.time()) + 120
    for taken in (token(iat=soon), token(nbf=soon)):
        assert (await asking(gateway, f"Bearer {taken}")).status_code == 200
    for refused in (token(iat=later), token(nbf=later)):
        assert (await asking(gateway, f"Bearer {refused}")).status_code == 401


@pytest.mark.parametrize("claim", ["[]", "null", "{}"])
async def test_a_claim_of_no_workspaces_makes_a_guest(gateway: Gateway, services: FakeServices, claim: str) -> None:
    claims = f'{{"sub":"alice","exp":{NOW + 14_400},"workspaces":{claim}}}'
    guest = unsigned('{"alg":"HS256"}', claims)
    assert (await asking(gateway, f"Bearer {guest}")).status_code == 200
    assert services.requests("ListSessions")[0].caller.role == 0


@pytest.mark.parametrize(
    "entry",
    [{OTHER_WORKSPACE: "billing"}, {OTHER_WORKSPACE: None}, {OTHER_WORKSPACE: ["owner"]}, {"acme": "owner"}, {"": ""}],
    ids=str,
)
async def test_an_entry_that_can_not_be_used_costs_its_workspace_alone(
    gateway: Gateway, services: FakeServices, entry: dict[str, Any]
) -> None:
    async with client_of(gateway, workspaces={**entry, WORKSPACE: "owner"}) as client:
        await client.get(CHATS)
        await client.get(CHATS.replace(WORKSPACE, OTHER_WORKSPACE))
    assert [request.caller.role for request in services.requests("ListSessions")] == [4, 0]


async def test_two_spellings_of_a_workspace_with_two_roles_cost_that_workspace_alone(
    gateway: Gateway, services: FakeServices
) -> None:
    roles = {WORKSPACE: "viewer", WORKSPACE.upper(): "owner", OTHER_WORKSPACE: "member"}
    async with client_of(gateway, workspaces=roles) as client:
        await client.get(CHATS)
        await client.get(CHATS.replace(WORKSPACE, OTHER_WORKSPACE))
    assert [request.caller.role for request in services.requests("ListSessions")] == [0, 2]


async def test_entries_that_are_ignored_are_counted_in_the_log_without_their_values(gateway: Gateway) -> None:
    with capture_logs() as logs:
        await asking(gateway, f"Bearer {token(workspaces={WORKSPACE: 'owner', OTHER_WORKSPACE: 'billing'})}")
    [event] = [entry for entry in logs if entry["event"] == "workspaces_ignored"]
    assert event == {"event": "workspaces_ignored", "log_level": "debug", "count": 1}


async def test_headers_over_16_kib_are_431(gateway: Gateway) -> None:
    refused = await asking(gateway, f"Bearer {'x' * 64 * 1024}")
    assert (refused.status_code, refused.json()["code"]) == (431, "headers_too_large")


async def test_a_token_that_expires_is_not_remembered_past_its_time(gateway: Gateway) -> None:
    now = time.time()
    authenticator = gateway.parts.authenticator
    authenticator._clock = lambda: now
    held = f"Bearer {token(exp=int(now) + 30)}"
    assert (await asking(gateway, held)).status_code == 200
    now += 31
    assert (await asking(gateway, held)).status_code == 401


async def test_issuer_and_audience_must_be_those_that_are_configured(services: FakeServices) -> None:
    strict = Gateway(settings_for(services.address, auth_issuer="https://id.example", auth_audience="chat"))
    right: dict[str, Any] = {"iss": "https://id.example", "aud": "chat"}
    statuses = [
        (await asking(strict, f"Bearer {token(**claims)}")).status_code
        for claims in (
            {},
            {**right, "iss": "https://evil.example"},
            {**right, "aud": "other"},
            {**right, "aud": []},
            {**right, "aud": ["account", "chat"]},
            right,
        )
    ]
    await strict.close()
    assert statuses == [401, 401, 401, 401, 200, 200]


async def test_an_audience_is_of_no_interest_unless_one_is_configured(gateway: Gateway) -> None:
    assert (await asking(gateway, f"Bearer {token(aud='anything')}")).status_code == 200


async def test_the_caller_and_its_role_reach_the_service(gateway: Gateway, services: FakeServices) -> None:
    async with client_of(gateway, sub="bob", workspaces={WORKSPACE.upper(): "viewer"}) as bob:
        await bob.get(CHATS)
    caller = services.requests("ListSessions")[0].caller
    assert (caller.user_id, caller.workspace_id, caller.role) == ("bob", WORKSPACE, 1)


async def test_a_workspace_that_the_token_does_not_name_makes_a_guest(gateway: Gateway, services: FakeServices) -> None:
    async with client_of(gateway, workspaces={OTHER_WORKSPACE: "owner"}) as client:
        await client.get(CHATS)
    assert services.requests("ListSessions")[0].caller.role == 0


async def test_no_mutation_of_a_token_is_accepted(gateway: Gateway) -> None:
    good, chance = token(), random.Random(7)
    alphabet = "ABCabc019-_.=é \0"
    meanings = {_meaning(good)}
    for _ in range(2_000):
        at, kind = chance.randrange(len(good)), chance.randrange(3)
        put = chance.choice(alphabet)
        mutant = good[:at] + (put if kind != 0 else "") + good[at + (kind != 1) :]
        if _meaning(mutant) in meanings:  # the same bytes written in another way: base64 has idle bits at its end
            continue
        answer = await asking(gateway, f"Bearer {mutant}")
        assert answer.status_code == 401, mutant


def _meaning(text: str) -> tuple[bytes | None, ...]:
    """A token's parts as bytes; blanks around a header's value do not count."""
    return tuple(_decoded(part) for part in text.strip(" ").split("."))


def _decoded(part: str) -> bytes | None:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        return None
