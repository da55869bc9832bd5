"""The caller over all its workspaces: `/api/users/`."""

from __future__ import annotations

from backendai.billing.v1.billing_pb2 import GetCreditUsageRequest
from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from gateway.answers import Credits, answer
from gateway.calls import KnownCaller
from gateway.problems import problems
from gateway.routing import PrivateRoute
from services.kit.money import to_credits

router = APIRouter(prefix="/api/users", tags=["users"], route_class=PrivateRoute)


class CreditUsageOut(TypedDict):
    """What the caller's workspaces were given, and what the caller spent in them."""

    total_credit_limit: Credits
    total_cost: Credits
    percentage_used: float


@router.get("/credit-usage/", operation_id="get_credit_usage", response_model=CreditUsageOut, responses=problems(401))
async def get_credit_usage(call: KnownCaller) -> Response:
    """What the caller has spent of what its workspaces were given."""
    found = await call.parts.billing.GetCreditUsage(
        GetCreditUsageRequest(user_id=call.principal.user_id, workspace_ids=list(call.principal.roles))
    )
    used = 100 * found.cost_nano / found.limit_nano if found.limit_nano else 0.0
    usage: CreditUsageOut = {
        "total_credit_limit": to_credits(found.limit_nano),
        "total_cost": to_credits(found.cost_nano),
        "percentage_used": round(used, 1),
    }
    return answer(usage)
