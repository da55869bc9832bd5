"""Credits, usage, grants, totals and models: billing's numbers as decimal strings."""

from typing import Any

import httpx
import pytest
from backendai.billing.v1 import billing_pb2 as pb

from gateway.server import Gateway
from services.kit.errors import PermissionDenied
from tests.unit.gateway.conftest import FakeServices, client_of
from tests.unit.gateway.samples import CREDITS, NOON, NOON_TEXT, OTHER_WORKSPACE, SESSION, TASK, WORKSPACE

CHARGE = pb.LedgerEntry(
    id=TASK,
    kind="chat",
    task_id=TASK,
    session_id=SESSION,
    user_id="alice",
    provider="local",
    model="small",
    usage=pb.Usage(input_tokens=12, output_tokens=3),
    amount_nano=-1_500,
    created_at=NOON,
)
GRANT = pb.LedgerEntry(
    id=TASK, kind="grant", user_id="alice", amount_nano=25_000_000_000, created_at=NOON, reason="Pilot"
)
GRANT_OUT: dict[str, Any] = {
    "id": TASK,
    "kind": "grant",
    "task_id": None,
    "session_id": None,
    "user_id": "alice",
    "provider": None,
    "model": None,
    "input_tokens": None,
    "output_tokens": None,
    "seconds": None,
    "amount": "25",
    "created_at": NOON_TEXT,
}


async def test_the_balance_is_shown_with_what_is_held(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["GetCredits"] = pb.GetCreditsResponse(balance_nano=12_450_000_001, held_nano=450_000_000)
    assert (await client.get(CREDITS)).json() == {
        "balance": "12.450000001",
        "held": "0.45",
        "available": "12.000000001",
    }


async def test_the_ledger_shows_charges_and_grants(client: httpx.AsyncClient, services: FakeServices) -> None:
    speech = pb.LedgerEntry(kind="speech", usage=pb.Usage(seconds=12.5), amount_nano=-1, created_at=NOON)
    services.answers["ListUsage"] = pb.ListUsageResponse(entries=[CHARGE, speech, GRANT])
    charge, spoken, grant = (await client.get(f"{CREDITS}usage/")).json()["results"]
    assert charge == {
        **GRANT_OUT,
        "kind": "chat",
        "task_id": TASK,
        "session_id": SESSION,
        "provider": "local",
        "model": "small",
        "input_tokens": 12,
        "output_tokens": 3,
        "amount": "-0.0000015",
    }
    assert (spoken["seconds"], spoken["input_tokens"], spoken["amount"]) == (12.5, None, "-0.000000001")
    assert grant == GRANT_OUT


async def test_a_grant_is_booked_in_nano_credits(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["GrantCredits"] = pb.GrantCreditsResponse(entry=GRANT)
    body = {"amount": "25.000000001", "reason": "Pilot"}
    answer = await client.post(f"{CREDITS}grants/", json=body, headers={"Idempotency-Key": "grant 1"})
    assert (answer.status_code, answer.json()) == (201, {**GRANT_OUT, "reason": "Pilot"})
    request = services.requests("GrantCredits")[0]
    assert (request.amount_nano, request.reason, request.idempotency_key) == (25_000_000_001, "Pilot", "grant 1")


async def test_a_grant_needs_no_reason(client: httpx.AsyncClient, services: FakeServices) -> None:
    services.answers["GrantCredits"] = pb.GrantCreditsResponse(entry=GRANT)
    assert (await client.post(f"{CREDITS}grants/", json={"amount": "1000000000"})).status_code == 201
    assert services.requests("GrantCredits")[0].amount_nano == 10**18


async def test_a_member_may_not_grant(gateway: Gateway, services: FakeServices) -> None:
    services.answers["GrantCredits"] = PermissionDenied()
    async with client_of(gateway, workspaces={WORKSPACE: "member"}) as member:
        assert (await member.post(f"{CREDITS}grants/", json={"amount": "1"})).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", CREDITS, None), ("GET", f"{CREDITS}usage/", None), ("POST", f"{CREDITS}grants/", {"amount": "1"})],
)
async def test_a_guest_learns_nothing_of_credits(
    guest: httpx.AsyncClient, services: FakeServices, method: str, path: str, body: Any
) -> None:
    answer = await guest.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert services.asked == []


async def test_totals_are_over_all_workspaces_of_the_token(gateway: Gateway, services: FakeServices) -> None:
    services.answers["GetCreditUsage"] = pb.GetCreditUsageResponse(limit_nano=39_990_000_000, cost_nano=12_450_000_000)
    roles = {WORKSPACE: "owner", OTHER_WORKSPACE: "viewer"}
    async with client_of(gateway, workspaces=roles) as client:
        shown = (await client.get("/api/users/credit-usage/")).json()
    assert shown == {"total_credit_limit": "39.99", "total_cost": "12.45", "percentage_used": 31.1}
    request = services.requests("GetCreditUsage")[0]
    assert (request.user_id, set(request.workspace_ids)) == ("alice", set(roles))


async def test_nothing_given_is_nothing_used(client: httpx.AsyncClient) -> None:
    shown = (await client.get("/api/users/credit-usage/")).json()
    assert shown == {"total_credit_limit": "0", "total_cost": "0", "percentage_used": 0.0}


async def test_models_are_those_of_configured_providers_with_their_prices(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    tier = pb.RateTier(input_nano_per_million=1_250_000_000, output_nano_per_million=10_000_000_000)
    long = pb.RateTier(input_nano_per_million=2_500_000_000, output_nano_per_million=15_000_000_000)
    cheap = pb.RateTier()
    cheap.CopyFrom(tier)
    cheap.up_to_input_tokens = 200_000
    window = {"context_window_tokens": 1_048_576, "max_output_tokens": 65_536, "priced_on": "2026-01-01"}
    services.answers["ListModels"] = pb.ListModelsResponse(
        models=[
            pb.Model(provider="google", model="gemini-2.5-pro", rates=pb.Rates(tiers=[cheap, long]), **window),  # type: ignore[arg-type]
            pb.Model(provider="local", model="smollm2-135m-instruct", rates=pb.Rates(tiers=[pb.RateTier()])),
            pb.Model(provider="openai", model="gpt-4o-mini", rates=pb.Rates(tiers=[tier])),
        ]
    )
    page = (await client.get("/api/models/")).json()
    gemini, local = page["results"]
    assert (page["next"], page["previous"]) == (None, None)
    assert gemini == {
        "provider": "google",
        "model": "gemini-2.5-pro",
        "kind": "chat",
        "context_window": 1_048_576,
        "max_output_tokens": 65_536,
        "input_price_per_million": "1.25",
        "output_price_per_million": "10",
        "price_tiers": [
            {"up_to_input_tokens": 200_000, "input_price_per_million": "1.25", "output_price_per_million": "10"},
            {"up_to_input_tokens": None, "input_price_per_million": "2.5", "output_price_per_million": "15"},
        ],
        "audio_price_per_minute": None,
        "priced_on": "2026-01-01",
        "is_default": False,
    }
    assert (local["model"], local["is_default"]) == ("smollm2-135m-instruct", True)


async def test_a_model_that_is_priced_by_time_is_of_another_kind(
    client: httpx.AsyncClient, services: FakeServices
) -> None:
    whisper = pb.Model(provider="local", model="whisper-1", audio_nano_per_minute=6_000_000)
    services.answers["ListModels"] = pb.ListModelsResponse(models=[whisper])
    (shown,) = (await client.get("/api/models/")).json()["results"]
    assert (shown["kind"], shown["audio_price_per_minute"], shown["price_tiers"]) == ("speech", "0.006", [])
