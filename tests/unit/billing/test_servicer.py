"""The service as its clients see it: over gRPC, with reasons for failures."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc
import pytest
from backendai.billing.v1 import billing_pb2 as pb
from backendai.billing.v1.billing_pb2_grpc import BillingServiceStub, add_BillingServiceServicer_to_server
from backendai.common.v1 import common_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.billing.servicer import BillingServicer
from services.billing.usecases import Billing
from services.kit.grpc_client import dial
from services.kit.grpc_errors import error_info
from services.kit.grpc_server import Server
from services.kit.money import NANO
from services.kit.postgres.errors import is_down
from tests.unit.billing.factories import INPUT, LEAST, OUTPUT, WORST_CASE, fund, new_workspace

if TYPE_CHECKING:  # exists for the type checker only
    from backendai.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub as Stub


@pytest.fixture
async def stub(billing: Billing) -> AsyncIterator[Stub]:
    """A client of the service, served for real."""
    server = Server("127.0.0.1:0", is_down=is_down)
    port = server.grpc.add_insecure_port("127.0.0.1:0")
    add_BillingServiceServicer_to_server(BillingServicer(billing), server.grpc)
    await server.grpc.start()
    channel = dial(f"127.0.0.1:{port}", "billing")
    yield BillingServiceStub(channel)
    await channel.close()
    await server.drain(0)


def hold_request(workspace_id: object, **changes: object) -> pb.HoldCreditsRequest:
    """A default turn."""
    values: dict[str, object] = {
        "hold_id": str(uuid4()),
        "workspace_id": str(workspace_id),
        "user_id": "alice",
        "session_id": str(uuid4()),
        "kind": pb.CHARGE_KIND_CHAT,
        "provider": "fake",
        "model": "chat",
        "input_tokens": 1_000,
    }
    return pb.HoldCreditsRequest(**(values | changes))  # type: ignore[arg-type]


def caller(workspace_id: object, role: common_pb2.Role.ValueType = common_pb2.ROLE_OWNER) -> common_pb2.Caller:
    """Alice."""
    return common_pb2.Caller(user_id="alice", workspace_id=str(workspace_id), role=role)


async def refusal(call: object) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """How a call failed."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # type: ignore[misc]
    info = error_info(failed.value)
    assert info is not None, failed.value
    assert info.domain == "backendai"
    return failed.value.code(), info.reason, dict(info.metadata)


async def test_a_turn_is_held_settled_and_listed(stub: Stub, billing: Billing) -> None:
    workspace = new_workspace()
    granted = await stub.GrantCredits(
        pb.GrantCreditsRequest(caller=caller(workspace), amount_nano=NANO, reason="hello", idempotency_key="1")
    )
    assert (granted.entry.kind, granted.entry.user_id, granted.entry.reason) == ("grant", "alice", "hello")
    request = hold_request(workspace)
    held = await stub.HoldCredits(request)
    assert (held.held_nano, held.output_tokens) == (WORST_CASE, 1_000)
    (tier,) = held.rates.tiers
    assert (tier.up_to_input_tokens, tier.input_nano_per_million) == (0, INPUT * 1_000_000)
    credits = await stub.GetCredits(pb.GetCreditsRequest(caller=caller(workspace, common_pb2.ROLE_VIEWER)))
    assert (credits.balance_nano, credits.held_nano) == (NANO, WORST_CASE)
    usage = pb.Usage(input_tokens=900, output_tokens=10, estimated=True)
    unknown = str(uuid4())
    settled = await stub.SettleHolds(
        pb.SettleHoldsRequest(
            settlements=[
                pb.Settlement(hold_id=unknown, usage=usage),
                pb.Settlement(hold_id=request.hold_id, usage=usage),
            ]
        )
    )
    charge = 900 * INPUT + 10 * OUTPUT
    assert [(one.hold_id, one.charged_nano) for one in settled.settled] == [(unknown, 0), (request.hold_id, charge)]
    page = await stub.ListUsage(pb.ListUsageRequest(caller=caller(workspace), page=common_pb2.PageRequest(limit=1)))
    (entry,) = page.entries
    assert (entry.kind, entry.task_id, entry.session_id) == ("chat", request.hold_id, request.session_id)
    assert (entry.amount_nano, entry.usage, entry.provider, entry.model) == (-charge, usage, "fake", "chat")
    assert entry.created_at.seconds > 1_700_000_000
    assert page.page.next_token
    assert not page.page.previous_token
    totals = await stub.GetCreditUsage(pb.GetCreditUsageRequest(user_id="alice", workspace_ids=[str(workspace)]))
    assert (totals.limit_nano, totals.cost_nano) == (NANO, charge)


async def test_the_price_list_is_told(stub: Stub) -> None:
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [model.model for model in models] == ["audio", "brief", "chat", "free"]
    audio, _, chat, _ = models
    assert (audio.audio_nano_per_minute, len(audio.rates.tiers)) == (6_000_000, 0)
    assert (chat.context_window_tokens, chat.max_output_tokens, chat.priced_on) == (10_000, 1_000, "2026-11-22")


async def test_too_few_credits_are_told_with_what_is_available(stub: Stub, billing: Billing) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, LEAST - 1)
    expected = (grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_CREDITS", {"available": "0.002023999"})
    assert await refusal(stub.HoldCredits(hold_request(workspace))) == expected
    empty = pb.CheckCreditsRequest(workspace_id=str(new_workspace()))
    assert (await refusal(stub.CheckCredits(empty)))[1:] == ("INSUFFICIENT_CREDITS", {"available": "0"})


async def test_a_released_id_is_refused_by_name(stub: Stub, billing: Billing) -> None:
    workspace = new_workspace()
    await fund(billing, workspace, NANO)
    late = hold_request(workspace)
    await stub.ReleaseHolds(pb.ReleaseHoldsRequest(hold_ids=[late.hold_id]))
    code, reason, _ = await refusal(stub.HoldCredits(late))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "HOLD_RELEASED")


async def test_a_model_without_a_price_is_refused_by_name(stub: Stub) -> None:
    code, reason, metadata = await refusal(stub.HoldCredits(hold_request(new_workspace(), model="gpt-99")))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PRICE_UNKNOWN")
    assert metadata == {"provider": "fake", "model": "gpt-99"}


async def test_roles_are_told_apart(stub: Stub) -> None:
    workspace = new_workspace()
    for role, expected in [
        (common_pb2.ROLE_MEMBER, grpc.StatusCode.PERMISSION_DENIED),
        (common_pb2.ROLE_VIEWER, grpc.StatusCode.PERMISSION_DENIED),
        (common_pb2.ROLE_UNSPECIFIED, grpc.StatusCode.NOT_FOUND),
    ]:
        grant = pb.GrantCreditsRequest(caller=caller(workspace, role), amount_nano=1)
        assert (await refusal(stub.GrantCredits(grant)))[0] == expected
    guest = caller(workspace, common_pb2.ROLE_UNSPECIFIED)
    page = common_pb2.PageRequest(limit=1)
    assert (await refusal(stub.GetCredits(pb.GetCreditsRequest(caller=guest))))[1] == "NOT_FOUND"
    assert (await refusal(stub.ListUsage(pb.ListUsageRequest(caller=guest, page=page))))[1] == "NOT_FOUND"


async def test_a_key_of_another_grant_is_refused_by_name(stub: Stub) -> None:
    workspace = new_workspace()
    grant = pb.GrantCreditsRequest(caller=caller(workspace), amount_nano=1, idempotency_key="k")
    first = await stub.GrantCredits(grant)
    assert (await stub.GrantCredits(grant)).entry == first.entry
    grant.amount_nano = 2
    code, reason, _ = await refusal(stub.GrantCredits(grant))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED")


WORKSPACE = str(uuid4())


MALFORMED = [
    pb.OpenAccountRequest(workspace_id="nowhere"),
    pb.CheckCreditsRequest(workspace_id=""),
    pb.GetCreditsRequest(),
    pb.GetCreditsRequest(caller=common_pb2.Caller(user_id="a" * 256, workspace_id=WORKSPACE, role=4)),  # type: ignore[arg-type]
    pb.GetCreditsRequest(caller=common_pb2.Caller(user_id="a\0", workspace_id=WORKSPACE, role=4)),  # type: ignore[arg-type]
    pb.GetCreditsRequest(caller=common_pb2.Caller(user_id="a", workspace_id=WORKSPACE, role=99)),  # type: ignore[arg-type]
    pb.ListUsageRequest(caller=caller(WORKSPACE)),
    pb.ListUsageRequest(caller=caller(WORKSPACE), page=common_pb2.PageRequest(limit=201)),
    pb.GrantCreditsRequest(caller=caller(WORKSPACE), amount_nano=0),
    pb.GrantCreditsRequest(caller=caller(WORKSPACE), amount_nano=1, reason="a\0"),
    pb.GrantCreditsRequest(caller=caller(WORKSPACE), amount_nano=1, idempotency_key="k" * 256),
    pb.GetCreditUsageRequest(user_id="alice", workspace_ids=["x"]),
    pb.GetCreditUsageRequest(user_id="alice", workspace_ids=[WORKSPACE] * 1_001),
    pb.GetCreditUsageRequest(user_id=""),
    pb.ReleaseHoldsRequest(hold_ids=["x"]),
    pb.ReleaseHoldsRequest(hold_ids=[WORKSPACE] * 1_001),
    pb.SettleHoldsRequest(settlements=[pb.Settlement(hold_id="x")]),
    pb.SettleHoldsRequest(settlements=[pb.Settlement(hold_id=WORKSPACE)] * 1_001),
    hold_request("x"),
    hold_request(WORKSPACE, hold_id="x"),
    hold_request(WORKSPACE, session_id="x"),
    hold_request(WORKSPACE, user_id=""),
    hold_request(WORKSPACE, kind=0),
    hold_request(WORKSPACE, input_tokens=-1),
    hold_request(WORKSPACE, input_tokens=10_000),
    hold_request(WORKSPACE, max_output_tokens=-1),
    hold_request(WORKSPACE, expires_at=Timestamp(seconds=2**60)),
    hold_request(WORKSPACE, kind=pb.CHARGE_KIND_SPEECH, model="audio", seconds=math.nan),
]


async def test_what_is_malformed_is_an_invalid_argument(stub: Stub) -> None:
    for request in MALFORMED:
        method = getattr(stub, type(request).__name__.removesuffix("Request"))
        refused = (await refusal(method(request)))[:2]
        assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"), request


async def test_a_token_of_another_list_is_an_invalid_cursor(stub: Stub) -> None:
    request = pb.ListUsageRequest(caller=caller(WORKSPACE), page=common_pb2.PageRequest(limit=1, token="7"))
    assert (await refusal(stub.ListUsage(request)))[1] == "INVALID_CURSOR"
