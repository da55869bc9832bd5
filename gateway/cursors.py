"""Cursors: a service's page token, signed for one user, list and set of filters."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import grpc
from backendai.common.v1 import common_pb2
from fastapi import Request, Response
from itsdangerous import BadData, URLSafeSerializer

from gateway.answers import answer
from gateway.problems import Problem
from services.kit.grpc_errors import error_info

MAX_CURSOR_CHARACTERS = 2_048
R = TypeVar("R")


class Cursors:
    """Signs and checks cursors; every gateway with the same secret takes them."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def listing(
        self, request: Request, *, limit: int, cursor: str | None, filters: Mapping[str, str | None] | None = None
    ) -> Listing:
        """The page that a request asks for. 400 `invalid_cursor` for what was not given out for this very list."""
        kept = {name: value for name, value in (filters or {}).items() if value is not None}
        salt = "\x1f".join((request.scope["principal"].user_id, request.scope["path"], urlencode(kept)))
        signer = URLSafeSerializer(self._secret, salt=salt, signer_kwargs={"digest_method": hashlib.sha256})
        return Listing(signer, quote(request.scope["path"]), kept, limit, cursor)


class Listing:
    """One list as one caller pages through it."""

    def __init__(
        self, signer: URLSafeSerializer, path: str, filters: Mapping[str, str], limit: int, cursor: str | None
    ) -> None:
        self._signer, self._path, self._filters, self._limit = signer, path, filters, limit
        self.page = common_pb2.PageRequest(limit=limit, token=self._token(cursor) if cursor is not None else "")

    def _token(self, cursor: str) -> str:
        try:
            token = self._signer.loads(cursor) if len(cursor) <= MAX_CURSOR_CHARACTERS else None
        except BadData:
            token = None
        if not isinstance(token, str):
            raise Problem(400, "invalid_cursor", "The cursor is not one that this list gave out.")
        return token

    async def fetch(self, ask: Callable[[], Awaitable[R]]) -> R:
        """The page. One that is too large for a single message of gRPC is asked for again at half the length."""
        while True:
            try:
                return await ask()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or error_info(error) or self.page.limit == 1:
                    raise
                self.page.limit //= 2

    def _link(self, token: str) -> str | None:
        if not token:
            return None
        query = {**self._filters, "limit": str(self._limit), "cursor": self._signer.dumps(token)}
        return f"{self._path}?{urlencode(query)}"

    def answer(self, results: list[Any], page: common_pb2.PageInfo) -> Response:
        """`{"next", "previous", "results"}`, the links with the same filters."""
        neighbours = {"next": self._link(page.next_token), "previous": self._link(page.previous_token)}
        return answer({**neighbours, "results": results})
