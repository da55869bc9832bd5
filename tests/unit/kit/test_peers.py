"""Who may call a method, as its proto says."""

import pytest
from backendai.chat.v1 import chat_pb2  # noqa: F401  # registers the methods that are asked about

from services.kit.peers import CallerNotAllowed, callers_of, check_caller

SEND = "/backendai.chat.v1.ChatService/SendMessage"
CLAIM = "/backendai.chat.v1.TaskService/ClaimTasks"


def shown(*names: str) -> dict[str, list[bytes]]:
    """What gRPC tells of a peer's certificate."""
    return {"x509_subject_alternative_name": [name.encode() for name in names]}


def test_the_gateway_sends_and_the_agent_claims() -> None:
    assert callers_of(SEND) == frozenset({"gateway"})
    assert callers_of(CLAIM) == frozenset({"agent"})
    check_caller(SEND, shown("gateway"))
    check_caller(CLAIM, shown("agent"))


@pytest.mark.parametrize("peer", [shown("agent"), shown(), {}, {"x509_common_name": [b"gateway"]}, shown("Gateway")])
def test_another_name_no_name_or_a_name_elsewhere_in_the_certificate_is_refused(peer: dict[str, list[bytes]]) -> None:
    with pytest.raises(CallerNotAllowed):
        check_caller(SEND, peer)


def test_one_of_several_names_is_enough() -> None:
    check_caller(SEND, shown("gateway.backendai.svc", "gateway"))


def test_health_and_reflection_are_for_whoever_has_a_certificate() -> None:
    check_caller("/grpc.health.v1.Health/Check", shown("translate"))
    check_caller("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", {})
