"""What chat asks of billing, over gRPC; failures come out as DomainErrors."""

from collections.abc import Sequence
from uuid import UUID

import grpc
from backendai.billing.v1 import billing_pb2 as pb
from backendai.billing.v1.billing_pb2_grpc import BillingServiceStub

from services.chat.domain import Admission, Hold, Model, Usage
from services.kit.callers import Caller
from services.kit.grpc_client import outcome_of
from services.kit.money import Tier

HOLD_DEADLINE_SECONDS = 2.0
SETTLE_DEADLINE_SECONDS = 2.0


class Billing:
    """The billing service's stub in chat's own words."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = BillingServiceStub(channel)

    async def models(self) -> Sequence[Model]:
        """The models that are priced by token."""
        response = await outcome_of(self._stub.ListModels(pb.ListModelsRequest()))
        return [
            Model(found.provider, found.model, found.context_window_tokens, found.max_output_tokens)
            for found in response.models
            if found.rates.tiers
        ]

    async def check(self, workspace_id: UUID) -> None:
        """Raise insufficient_credits when nothing is available."""
        await outcome_of(self._stub.CheckCredits(pb.CheckCreditsRequest(workspace_id=str(workspace_id))))

    async def hold(self, caller: Caller, admission: Admission, *, input_tokens: int) -> Hold:
        """Set credits aside for a turn; a repeated call returns the first hold."""
        request = pb.HoldCreditsRequest(
            hold_id=str(admission.task_id),
            workspace_id=str(caller.workspace_id),
            user_id=caller.user_id,
            session_id=str(admission.session_id),
            kind=pb.CHARGE_KIND_CHAT,
            provider=admission.provider,
            model=admission.model,
            input_tokens=input_tokens,
            max_output_tokens=admission.max_tokens or 0,
        )
        response = await outcome_of(self._stub.HoldCredits(request, timeout=HOLD_DEADLINE_SECONDS))
        return Hold(response.held_nano, [_tier(tier) for tier in response.rates.tiers], response.output_tokens)

    async def settle(self, usages: Sequence[tuple[UUID, Usage]]) -> Sequence[tuple[UUID, int]]:
        """Pay ended tasks, each once; what each was charged in nano-credits."""
        if not usages:
            return ()
        request = pb.SettleHoldsRequest(
            settlements=[
                pb.Settlement(
                    hold_id=str(task_id),
                    usage=pb.Usage(
                        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, estimated=usage.estimated
                    ),
                )
                for task_id, usage in usages
            ]
        )
        response = await outcome_of(self._stub.SettleHolds(request, timeout=SETTLE_DEADLINE_SECONDS))
        return [(UUID(settled.hold_id), settled.charged_nano) for settled in response.settled]

    async def release(self, task_ids: Sequence[UUID]) -> None:
        """Give holds back unspent."""
        if task_ids:
            request = pb.ReleaseHoldsRequest(hold_ids=[str(task_id) for task_id in task_ids])
            await outcome_of(self._stub.ReleaseHolds(request, timeout=SETTLE_DEADLINE_SECONDS))


def _tier(tier: pb.RateTier) -> Tier:
    return Tier(tier.up_to_input_tokens or None, tier.input_nano_per_million, tier.output_nano_per_million)
