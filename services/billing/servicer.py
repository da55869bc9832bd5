"""The gRPC edge: proto to use case to proto."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID

import grpc
from backendai.billing.v1 import billing_pb2 as pb
from backendai.billing.v1 import billing_pb2_grpc
from backendai.common.v1 import common_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.billing.domain import (
    Entry,
    EntryKind,
    Grant,
    HoldId,
    HoldRequest,
    Price,
    Rates,
    SessionId,
    Settlement,
    Usage,
)
from services.billing.usecases import Billing
from services.kit.callers import WorkspaceId
from services.kit.errors import InvalidArgument
from services.kit.grpc_callers import to_caller
from services.kit.ids import parse_id
from services.kit.paging import PageQuery
from services.kit.text import check_text

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MAX_BATCH = 1_000
MAX_TEXT_CHARACTERS = 255
KINDS = {
    pb.CHARGE_KIND_CHAT: EntryKind.CHAT,
    pb.CHARGE_KIND_SPEECH: EntryKind.SPEECH,
    pb.CHARGE_KIND_TRANSLATE: EntryKind.TRANSLATE,
}


class BillingServicer(billing_pb2_grpc.BillingServiceServicer):
    """backendai.billing.v1.BillingService."""

    def __init__(self, billing: Billing) -> None:
        self._billing = billing

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=map(_model, self._billing.list_models()))

    async def OpenAccount(self, request: pb.OpenAccountRequest, context: Context) -> pb.OpenAccountResponse:
        await self._billing.open_account(WorkspaceId(_id("workspace_id", request.workspace_id)))
        return pb.OpenAccountResponse()

    async def GetCredits(self, request: pb.GetCreditsRequest, context: Context) -> pb.GetCreditsResponse:
        account = await self._billing.get_credits(to_caller(request.caller))
        return pb.GetCreditsResponse(balance_nano=account.balance_nano, held_nano=account.held_nano)

    async def CheckCredits(self, request: pb.CheckCreditsRequest, context: Context) -> pb.CheckCreditsResponse:
        account = await self._billing.check_credits(WorkspaceId(_id("workspace_id", request.workspace_id)))
        return pb.CheckCreditsResponse(available_nano=account.available_nano)

    async def HoldCredits(self, request: pb.HoldCreditsRequest, context: Context) -> pb.HoldCreditsResponse:
        hold = await self._billing.hold_credits(_hold_request(request))
        return pb.HoldCreditsResponse(
            held_nano=hold.amount_nano, rates=_rates(hold.rates), output_tokens=hold.output_tokens
        )

    async def SettleHolds(self, request: pb.SettleHoldsRequest, context: Context) -> pb.SettleHoldsResponse:
        _check_batch("settlements", request.settlements)
        settlements = [_settlement(settlement) for settlement in request.settlements]
        charged = await self._billing.settle_holds(settlements)
        return pb.SettleHoldsResponse(
            settled=[
                pb.SettledHold(hold_id=str(settlement.hold_id), charged_nano=charged[settlement.hold_id])
                for settlement in settlements
            ]
        )

    async def ReleaseHolds(self, request: pb.ReleaseHoldsRequest, context: Context) -> pb.ReleaseHoldsResponse:
        _check_batch("hold_ids", request.hold_ids)
        await self._billing.release_holds([HoldId(_id("hold_ids", hold_id)) for hold_id in request.hold_ids])
        return pb.ReleaseHoldsResponse()

    async def GrantCredits(self, request: pb.GrantCreditsRequest, context: Context) -> pb.GrantCreditsResponse:
        caller = to_caller(request.caller)
        grant = Grant(
            workspace_id=caller.workspace_id,
            user_id=caller.user_id,
            amount_nano=request.amount_nano,
            reason=request.reason,
            idempotency_key=_text("idempotency_key", request.idempotency_key) or None,
        )
        return pb.GrantCreditsResponse(entry=_entry(await self._billing.grant_credits(caller, grant)))

    async def ListUsage(self, request: pb.ListUsageRequest, context: Context) -> pb.ListUsageResponse:
        query = PageQuery.parse(limit=request.page.limit, token=request.page.token)
        page = await self._billing.list_usage(to_caller(request.caller), query)
        return pb.ListUsageResponse(
            entries=map(_entry, page.entries),
            page=common_pb2.PageInfo(next_token=page.next_token, previous_token=page.previous_token),
        )

    async def GetCreditUsage(self, request: pb.GetCreditUsageRequest, context: Context) -> pb.GetCreditUsageResponse:
        _check_batch("workspace_ids", request.workspace_ids)
        workspaces = [WorkspaceId(_id("workspace_ids", workspace)) for workspace in request.workspace_ids]
        usage = await self._billing.get_credit_usage(_text("user_id", request.user_id, least=1), workspaces)
        return pb.GetCreditUsageResponse(limit_nano=usage.limit_nano, cost_nano=usage.cost_nano)


def _id(field: str, text: str) -> UUID:
    value = parse_id(text)
    if value is None:
        raise InvalidArgument(f"{field} must be a UUID.", field=field)
    return value


def _text(field: str, text: str, *, least: int = 0) -> str:
    return check_text(text, field=field, least=least, most=MAX_TEXT_CHARACTERS)


def _check_batch(field: str, batch: Sequence[object]) -> None:
    if len(batch) > MAX_BATCH:
        raise InvalidArgument(f"{field} must have at most {MAX_BATCH} elements.", field=field)


def _hold_request(request: pb.HoldCreditsRequest) -> HoldRequest:
    if request.kind not in KINDS:
        raise InvalidArgument("kind must be given.", field="kind")
    if request.max_output_tokens < 0:
        raise InvalidArgument("max_output_tokens must not be negative.", field="max_output_tokens")
    return HoldRequest(
        id=HoldId(_id("hold_id", request.hold_id)),
        workspace_id=WorkspaceId(_id("workspace_id", request.workspace_id)),
        user_id=_text("user_id", request.user_id, least=1),
        session_id=SessionId(_id("session_id", request.session_id)) if request.session_id else None,
        kind=KINDS[request.kind],
        provider=_text("provider", request.provider),
        model=_text("model", request.model),
        input_tokens=request.input_tokens,
        max_output_tokens=request.max_output_tokens,
        seconds=request.seconds,
        expires_at=_moment(request.expires_at) if request.HasField("expires_at") else None,
    )


def _moment(timestamp: Timestamp) -> datetime:
    try:
        return timestamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument("expires_at is out of range.", field="expires_at") from None


def _settlement(settlement: pb.Settlement) -> Settlement:
    usage = settlement.usage
    return Settlement(
        hold_id=HoldId(_id("hold_id", settlement.hold_id)),
        usage=Usage(usage.input_tokens, usage.output_tokens, usage.seconds, usage.estimated),
    )


def _rates(rates: Rates) -> pb.Rates:
    return pb.Rates(
        tiers=[
            pb.RateTier(
                up_to_input_tokens=tier.up_to_input_tokens or 0,
                input_nano_per_million=tier.input_nano_per_million,
                output_nano_per_million=tier.output_nano_per_million,
            )
            for tier in rates.tiers
        ]
    )


def _model(price: Price) -> pb.Model:
    return pb.Model(
        provider=price.provider,
        model=price.model,
        context_window_tokens=price.context_window_tokens,
        max_output_tokens=price.max_output_tokens,
        rates=_rates(price.rates),
        audio_nano_per_minute=price.rates.audio_nano_per_minute,
        priced_on=price.priced_on.isoformat(),
        source=price.source,
    )


def _entry(entry: Entry) -> pb.LedgerEntry:
    proto = pb.LedgerEntry(
        id=str(entry.id),
        kind=entry.kind.value,
        task_id=_optional(entry.task_id),
        session_id=_optional(entry.session_id),
        user_id=entry.user_id,
        provider=entry.provider,
        model=entry.model,
        amount_nano=entry.amount_nano,
        created_at=_timestamp(entry.created_at),
        reason=entry.reason,
    )
    if entry.usage is not None:
        proto.usage.CopyFrom(_usage(entry.usage))
    return proto


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        seconds=usage.seconds,
        estimated=usage.estimated,
    )


def _optional(id: UUID | None) -> str:
    return str(id) if id is not None else ""


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
