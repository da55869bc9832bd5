"""A workspace's credits: `/api/workspaces/{workspace_id}/credits/`."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, NotRequired

from backendai.billing.v1 import billing_pb2 as pb
from fastapi import APIRouter, Body, Response
from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from gateway.answers import Credits, Id, Moment, answer, moment
from gateway.bodies import STORABLE, storable
from gateway.calls import Cursor, InWorkspace, Limit
from gateway.preferences import idempotency_key_of, takes
from gateway.problems import problems
from gateway.routing import PrivateRoute
from services.kit.money import to_credits, to_nano

router = APIRouter(prefix="/api/workspaces/{workspace_id}/credits", tags=["credits"], route_class=PrivateRoute)

MAX_GRANT = Decimal(1_000_000_000)


def _grantable(text: str) -> str:
    """Above nothing, within what an account holds."""
    if not 0 < Decimal(text) <= MAX_GRANT:
        raise ValueError(f"must be above 0 and at most {MAX_GRANT}")
    return text


class BalanceOut(TypedDict):
    """A workspace's credits; available = balance - held."""

    balance: Credits
    held: Credits
    available: Credits


@with_config(
    ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"amount": "25", "reason": "Pilot"}]})
)
class GrantIn(TypedDict):
    """Credits to add."""

    amount: Annotated[str, Field(pattern=r"^[0-9]{1,10}(\.[0-9]{1,9})?$"), AfterValidator(_grantable)]
    reason: NotRequired[Annotated[str, Field(max_length=500, json_schema_extra=STORABLE), AfterValidator(storable)]]


class EntryOut(TypedDict):
    """One entry of the ledger; `amount` is negative for a charge."""

    id: Id
    kind: str
    task_id: Id | None
    session_id: Id | None
    user_id: str | None
    provider: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    seconds: float | None
    amount: Credits
    created_at: Moment


class GrantOut(EntryOut):
    """A grant as booked."""

    reason: str


class EntryPage(TypedDict):
    """One page of the ledger."""

    next: str | None
    previous: str | None
    results: list[EntryOut]


def entry_out(entry: pb.LedgerEntry) -> EntryOut:
    """A ledger entry as JSON."""
    used, by_time = entry.HasField("usage"), entry.kind == "speech"
    return {
        "id": entry.id,
        "kind": entry.kind,
        "task_id": entry.task_id or None,
        "session_id": entry.session_id or None,
        "user_id": entry.user_id or None,
        "provider": entry.provider or None,
        "model": entry.model or None,
        "input_tokens": entry.usage.input_tokens if used and not by_time else None,
        "output_tokens": entry.usage.output_tokens if used and not by_time else None,
        "seconds": entry.usage.seconds if used and by_time else None,
        "amount": to_credits(entry.amount_nano),
        "created_at": moment(entry.created_at),
    }


@router.get("/", operation_id="get_credits", response_model=BalanceOut, responses=problems(401, 404))
async def get_credits(call: InWorkspace) -> Response:
    """The workspace's credits."""
    call.require_member()
    found = await call.parts.billing.GetCredits(pb.GetCreditsRequest(caller=call.caller))
    balance: BalanceOut = {
        "balance": to_credits(found.balance_nano),
        "held": to_credits(found.held_nano),
        "available": to_credits(found.balance_nano - found.held_nano),
    }
    return answer(balance)


@router.get("/usage/", operation_id="list_usage", response_model=EntryPage, responses=problems(400, 401, 404, 422))
async def list_usage(call: InWorkspace, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """The ledger, newest first: of the workspace for its owners and admins, of the caller for the others."""
    call.require_member()
    listing = call.parts.cursors.listing(call.request, limit=limit, cursor=cursor)
    found = await call.parts.billing.ListUsage(pb.ListUsageRequest(caller=call.caller, page=listing.page))
    return listing.answer([entry_out(entry) for entry in found.entries], found.page)


@router.post(
    "/grants/",
    status_code=201,
    operation_id="grant_credits",
    response_model=GrantOut,
    responses=problems(400, 401, 403, 404, 415, 422),
    openapi_extra=takes("Idempotency-Key"),
)
async def grant_credits(call: InWorkspace, body: Annotated[GrantIn, Body()]) -> Response:
    """Add credits to the workspace; for its owners and admins."""
    call.require_member()
    granted = await call.parts.billing.GrantCredits(
        pb.GrantCreditsRequest(
            caller=call.caller,
            amount_nano=to_nano(Decimal(body["amount"])),
            reason=body.get("reason", ""),
            idempotency_key=idempotency_key_of(call.request),
        )
    )
    grant: GrantOut = {**entry_out(granted.entry), "reason": granted.entry.reason}
    return answer(grant, 201)
