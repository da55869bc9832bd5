"""What speech asks of billing, over gRPC; failures come out as DomainErrors."""

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
from services.speech.domain import MAX_HOLDS, Job
from services.speech.errors import TooManyTries

if TYPE_CHECKING:  # this class is in the stubs' types only
    from backendai.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub

log = structlog.get_logger()

DEADLINE_SECONDS = 2.0
SETTLE_WAITS_SECONDS = (0.2, 0.5, 1.0, 2.0)
HOLD_RELEASED = "HOLD_RELEASED"
# Billing said no: nothing is held. After anything else it may be.
REFUSALS = (Kind.INVALID, Kind.PRECONDITION)


class Hold:
    """The price of one recording, set aside."""

    def __init__(self, stub: BillingServiceAsyncStub, job: Job, request: pb.HoldCreditsRequest) -> None:
        self._stub, self._job, self._request = stub, job, request
        self._number = -1
        self.over = False

    async def open(self) -> None:
        """Take the first of the job's holds that has not been given back, which may have been paid already."""
        while True:
            self._number += 1
            if self._number == MAX_HOLDS:
                self.over = True
                raise TooManyTries
            self._request.hold_id = str(self._job.numbered_hold(self._number))
            try:
                await outcome_of(self._stub.HoldCredits(self._request, timeout=DEADLINE_SECONDS))
                return
            except DomainError as error:
                if error.reason != HOLD_RELEASED:
                    self.over = error.kind in REFUSALS
                    raise

    async def settle(self) -> int:
        """Pay; the nano-credits that the job was charged, by this call or an earlier one.

        A hold that has expired meanwhile, or that a twin of this request gave back, pays nothing: the next one is
        taken and paid at once, so that nobody gets an answer for nothing.
        """
        self.over = True
        try:
            while not (charged := await self._pay()):
                await self.open()
        except BaseException:
            await self.release()  # of a hold that was paid after all this changes nothing
            raise
        return charged

    async def _pay(self) -> int:
        """Asked again for a while, which can't take it twice."""
        usage = pb.Usage(seconds=self._request.seconds)
        request = pb.SettleHoldsRequest(settlements=[pb.Settlement(hold_id=self._request.hold_id, usage=usage)])
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
        """Give it back, or let a hold that is still on its way fail. Without billing it gives itself back in time."""
        self.over = True
        request = pb.ReleaseHoldsRequest(hold_ids=[self._request.hold_id])
        try:
            await outcome_of(self._stub.ReleaseHolds(request, timeout=DEADLINE_SECONDS))
        except (DomainError, grpc.aio.AioRpcError) as error:
            log.warning("hold_left_to_expire", hold_id=self._request.hold_id, error=type(error).__name__)


class Billing:
    """The billing service's stub in speech's own words."""

    def __init__(self, channel: grpc.aio.Channel, *, hold_seconds: float, clock: Callable[[], float]) -> None:
        self._stub = BillingServiceStub(channel)
        self._hold_seconds, self._clock = hold_seconds, clock

    @asynccontextmanager
    async def hold(self, caller: Caller, job: Job, *, provider: str, model: str, seconds: float) -> AsyncIterator[Hold]:
        """The price of so many seconds for the block to settle. What it leaves unsettled is given back."""
        request = pb.HoldCreditsRequest(
            workspace_id=str(caller.workspace_id),
            user_id=caller.user_id,
            kind=pb.CHARGE_KIND_SPEECH,
            provider=provider,
            model=model,
            seconds=seconds,
            expires_at=_timestamp(self._clock() + self._hold_seconds),
        )
        hold = Hold(self._stub, job, request)
        try:
            await hold.open()
            yield hold
        except BaseException:
            if not hold.over:
                await hold.release()
            raise


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(int(seconds * 1_000_000))
    return timestamp
