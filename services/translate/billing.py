"""What translate asks of billing, over gRPC; failures come out as DomainErrors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import structlog
from backendai.billing.v1 import billing_pb2 as pb
from backendai.billing.v1.billing_pb2_grpc import BillingServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.callers import Caller
from services.kit.errors import DomainError, Kind
from services.kit.grpc_client import outcome_of
from services.kit.ids import new_id
from services.translate.domain import Usage

if TYPE_CHECKING:  # this class is in the stubs' types only
    from backendai.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub

log = structlog.get_logger()

DEADLINE_SECONDS = 2.0
SETTLE_WAITS_SECONDS = (0.2, 0.5, 1.0, 2.0)
INSUFFICIENT_CREDITS = "INSUFFICIENT_CREDITS"
# Billing said no: nothing is held. After anything else it may be.
REFUSALS = (Kind.INVALID, Kind.PRECONDITION)


class Hold:
    """Credits set aside for one call of a provider."""

    def __init__(self, stub: BillingServiceAsyncStub, request: pb.HoldCreditsRequest) -> None:
        self._stub, self._request = stub, request
        self.output_tokens = 0
        self.is_partial = False
        """Whether it buys less than was asked for."""
        self.over = False

    async def open(self) -> None:
        """Hold the longest answer; with less available than that, as much of it as there is."""
        try:
            try:
                response = await self._hold(self._request)
            except DomainError as error:
                if error.reason != INSUFFICIENT_CREDITS:
                    raise
                response = await self._hold(_without_limit(self._request))
                self.is_partial = True
        except DomainError as error:
            self.over = error.kind in REFUSALS
            raise
        self.output_tokens = min(response.output_tokens, self._request.max_output_tokens)

    async def _hold(self, request: pb.HoldCreditsRequest) -> pb.HoldCreditsResponse:
        return await outcome_of(self._stub.HoldCredits(request, timeout=DEADLINE_SECONDS))

    async def settle(self, usage: Usage) -> int:
        """Pay for what was used; the nano-credits taken. Asked again for a while, which can't take them twice."""
        self.over = True
        settlement = pb.Settlement(
            hold_id=self._request.hold_id,
            usage=pb.Usage(
                input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, estimated=usage.estimated
            ),
        )
        request = pb.SettleHoldsRequest(settlements=[settlement])
        for wait_seconds in SETTLE_WAITS_SECONDS:
            try:
                return await self._settle(request)
            except DomainError as error:
                if error.kind is not Kind.UNAVAILABLE:
                    raise
            await asyncio.sleep(wait_seconds)
        return await self._settle(request)

    async def _settle(self, request: pb.SettleHoldsRequest) -> int:
        response: pb.SettleHoldsResponse = await outcome_of(self._stub.SettleHolds(request, timeout=DEADLINE_SECONDS))
        return response.settled[0].charged_nano

    async def release(self) -> None:
        """Give it back; when billing can't be asked it gives itself back as it expires."""
        self.over = True
        request = pb.ReleaseHoldsRequest(hold_ids=[self._request.hold_id])
        try:
            await outcome_of(self._stub.ReleaseHolds(request, timeout=DEADLINE_SECONDS))
        except (DomainError, grpc.aio.AioRpcError) as error:
            log.warning("hold_left_to_expire", hold_id=self._request.hold_id, error=type(error).__name__)


class Billing:
    """The billing service's stub in translate's own words."""

    def __init__(self, channel: grpc.aio.Channel, *, hold_seconds: float, clock: Callable[[], float]) -> None:
        self._stub = BillingServiceStub(channel)
        self._hold_seconds, self._clock = hold_seconds, clock

    @asynccontextmanager
    async def hold(
        self, caller: Caller, *, provider: str, model: str, input_tokens: int, output_tokens: int
    ) -> AsyncIterator[Hold]:
        """Credits for the block to settle. What it leaves unsettled is given back."""
        request = pb.HoldCreditsRequest(
            hold_id=str(new_id()),
            workspace_id=str(caller.workspace_id),
            user_id=caller.user_id,
            kind=pb.CHARGE_KIND_TRANSLATE,
            provider=provider,
            model=model,
            input_tokens=input_tokens,
            max_output_tokens=output_tokens,
            expires_at=_timestamp(self._clock() + self._hold_seconds),
        )
        hold = Hold(self._stub, request)
        try:
            await hold.open()
            yield hold
        except BaseException:
            if not hold.over:
                await hold.release()
            raise


def _without_limit(request: pb.HoldCreditsRequest) -> pb.HoldCreditsRequest:
    """The same without a limit of its own, which billing holds in full or not at all."""
    unlimited = pb.HoldCreditsRequest()
    unlimited.CopyFrom(request)
    unlimited.ClearField("max_output_tokens")
    return unlimited


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(int(seconds * 1_000_000))
    return timestamp
