"""Opens a workspace's account when a member first names it, so that it has its signup credits before it needs them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import structlog
from backendai.billing.v1.billing_pb2 import OpenAccountRequest

if TYPE_CHECKING:  # these classes are in the stubs' types only
    from backendai.billing.v1.billing_pb2_grpc import BillingServiceAsyncStub

log = structlog.get_logger()

MAX_SEEN = 10_000
OPEN_SECONDS = 1.0


class Accounts:
    """Remembers which workspaces this process has opened; opening one again changes nothing."""

    def __init__(self, billing: BillingServiceAsyncStub) -> None:
        self._billing = billing
        self._seen: dict[str, None] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}

    async def open(self, workspace_id: str) -> None:
        """Open it if this process has not yet. While billing is down nobody is refused: a later request tries."""
        if workspace_id in self._seen:
            return
        opening = self._opening.get(workspace_id)
        if opening is None:
            opening = self._opening[workspace_id] = asyncio.create_task(self._open(workspace_id))
        await asyncio.shield(opening)

    async def _open(self, workspace_id: str) -> None:
        try:
            await self._billing.OpenAccount(OpenAccountRequest(workspace_id=workspace_id), timeout=OPEN_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.warning("account_not_opened", workspace_id=workspace_id, grpc_code=error.code().name)
        else:
            self._remember(workspace_id)
        finally:
            del self._opening[workspace_id]

    def _remember(self, workspace_id: str) -> None:
        if len(self._seen) >= MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        self._seen[workspace_id] = None
