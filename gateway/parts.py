"""What the routes work with, put together once a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request

from gateway.accounts import Accounts
from gateway.auth import Authenticator
from gateway.cursors import Cursors
from gateway.health import Health
from gateway.settings import Settings
from gateway.statuses import Statuses
from gateway.streams import Streams
from gateway.turns import Turns
from gateway.uploads import Uploads

if TYPE_CHECKING:  # these classes are in the stubs' types only
    from backendai.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub
    from backendai.chat.v1.chat_pb2_grpc import ChatServiceAsyncStub
    from backendai.speech.v1.speech_pb2_grpc import SpeechServiceAsyncStub
    from backendai.translate.v1.translate_pb2_grpc import TranslateServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each."""

    settings: Settings
    chat: ChatServiceAsyncStub
    billing: BillingServiceAsyncStub
    speech: SpeechServiceAsyncStub
    translate: TranslateServiceAsyncStub
    authenticator: Authenticator
    accounts: Accounts
    cursors: Cursors
    statuses: Statuses
    turns: Turns
    streams: Streams
    uploads: Uploads
    health: Health


def parts_of(request: Request) -> Parts:
    """Those of the app that a request came to."""
    parts: Parts = request.app.state.parts
    return parts
