"""Billing's holds in memory: grants what it is told to, and records what it is asked."""

import asyncio
from collections import Counter
from typing import Any, Self

import grpc
from backendai.billing.v1 import billing_pb2 as pb
from backendai.billing.v1 import billing_pb2_grpc

from services.kit.errors import DomainError, Kind, Unavailable
from services.kit.grpc_server import Server

WAIT_SECONDS = 10.0
Context = grpc.aio.ServicerContext[Any, Any]
# The other RPCs stay unimplemented, which its type does not allow.
Servicer: Any = billing_pb2_grpc.BillingServiceServicer


class InsufficientCredits(DomainError):
    """What billing answers when too little is available."""

    kind, reason, detail = Kind.PRECONDITION, "INSUFFICIENT_CREDITS", "The workspace has too few credits available."


class FakeBilling(Servicer):  # type: ignore[misc]
    """The RPCs of a hold's life, on a loopback port. A token costs one nano-credit, a second of audio a thousand."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.available_output_tokens = 1_000_000
        """A hold with a limit above it is refused; one without gets this much; below 256 nobody gets anything."""
        self.held: list[pb.HoldCreditsRequest] = []
        self.settled: list[pb.Settlement] = []
        self.released: list[str] = []
        self.refusals: Counter[str] = Counter()
        """How many of the next calls of an RPC are answered with UNAVAILABLE."""
        self.gates: dict[str, asyncio.Event] = {}
        """Calls of an RPC that is in here wait until its event is set."""
        self.calls: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._server: Server | None = None

    async def __aenter__(self) -> Self:
        self._server = Server(self.address)
        billing_pb2_grpc.add_BillingServiceServicer_to_server(self, self._server.grpc)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.drain(0)

    @property
    def open_holds(self) -> set[str]:
        """Held, and neither settled nor released."""
        ended = {settlement.hold_id for settlement in self.settled} | set(self.released)
        return {request.hold_id for request in self.held} - ended

    async def until(self, condition: Any) -> None:
        """Wait until what billing was asked makes the condition true; an assertion fails after 10 s."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def _arrived(self, rpc: str) -> None:
        self.calls[rpc] += 1
        self._changed.set()
        if rpc in self.gates:
            await self.gates[rpc].wait()
        if self.refusals[rpc] > 0:
            self.refusals[rpc] -= 1
            raise Unavailable

    async def HoldCredits(self, request: pb.HoldCreditsRequest, context: Context) -> pb.HoldCreditsResponse:
        await self._arrived("HoldCredits")
        if max(request.max_output_tokens, 256) > self.available_output_tokens:
            raise InsufficientCredits
        self.held.append(request)
        output_tokens = request.max_output_tokens or self.available_output_tokens
        return pb.HoldCreditsResponse(held_nano=request.input_tokens + output_tokens, output_tokens=output_tokens)

    async def SettleHolds(self, request: pb.SettleHoldsRequest, context: Context) -> pb.SettleHoldsResponse:
        await self._arrived("SettleHolds")
        self.settled.extend(request.settlements)
        self._changed.set()
        return pb.SettleHoldsResponse(
            settled=[
                pb.SettledHold(hold_id=settlement.hold_id, charged_nano=_price(settlement.usage))
                for settlement in request.settlements
            ]
        )

    async def ReleaseHolds(self, request: pb.ReleaseHoldsRequest, context: Context) -> pb.ReleaseHoldsResponse:
        await self._arrived("ReleaseHolds")
        self.released.extend(request.hold_ids)
        self._changed.set()
        return pb.ReleaseHoldsResponse()


def _price(usage: pb.Usage) -> int:
    return usage.input_tokens + usage.output_tokens + round(usage.seconds * 1_000)
