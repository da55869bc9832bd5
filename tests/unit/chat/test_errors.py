"""What chat says when it refuses is what its proto promises."""

from backendai.chat.v1 import chat_pb2 as pb

from services.chat import errors
from services.kit.errors import DomainError


def test_every_reason_is_in_the_proto_and_the_proto_has_no_other() -> None:
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DomainError)]
    said = {f"CHAT_REASON_{kind.reason}" for kind in own if kind is not DomainError}
    assert said == set(pb.ChatReason.keys()) - {"CHAT_REASON_UNSPECIFIED"}
