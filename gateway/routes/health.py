"""For probes: `/healthz` and `/readyz`, without authentication."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from gateway.answers import answer
from gateway.openapi import PUBLIC
from gateway.parts import parts_of
from gateway.problems import problems, unavailable
from gateway.routing import Route

router = APIRouter(tags=["health"], route_class=Route)


class AliveOut(TypedDict):
    """The process answers."""

    status: Literal["ok"]


class ReadyOut(TypedDict):
    """How each part is; NATS is not required."""

    status: Literal["ready"]
    chat: str
    billing: str
    nats: str


@router.get("/healthz", operation_id="get_liveness", response_model=AliveOut, openapi_extra=PUBLIC)
async def get_liveness() -> Response:
    """Whether the process answers at all."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    operation_id="get_readiness",
    response_model=ReadyOut,
    responses=problems(503),
    openapi_extra=PUBLIC,
)
async def get_readiness(request: Request) -> Response:
    """Whether requests can be served: chat and billing answer, and the gateway is not about to stop."""
    ready, parts = await parts_of(request).health.check()
    if not ready:
        state = ", ".join(f"{name} {how}" for name, how in parts.items())
        raise unavailable(f"Not ready: {state}.", code="not_ready")
    return answer({"status": "ready", **parts})
