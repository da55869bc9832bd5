"""The issuer's public keys: fetched ahead, kept when the issuer can't be reached, never fetched at a token's wish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import orjson
import structlog
from jwt import PyJWK
from jwt.exceptions import InvalidKeyError, PyJWKError

log = structlog.get_logger()

ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})
FETCH_SECONDS = 3.0
REFRESH_SECONDS = 600.0
UNKNOWN_KEY_SECONDS = 60.0
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
MAX_BYTES = 1024 * 1024


def parse_keys(document: Any) -> dict[str, PyJWK]:
    """The usable signing keys of a JWKS by their `kid`; the others are left out."""
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ValueError("not a JWKS")
    return {key.key_id: key for key in map(_parse_key, found) if key is not None and key.key_id}


def _parse_key(jwk: Any) -> PyJWK | None:
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig" or not isinstance(jwk.get("kid"), str):
        return None
    try:
        key = PyJWK(jwk)
    except (PyJWKError, InvalidKeyError, ValueError, TypeError):
        return None
    return key if key.algorithm_name in ALGORITHMS else None


class RemoteKeys:
    """Keys of a JWKS address. An unknown `kid` causes at most one fetch a minute."""

    def __init__(
        self, url: str, *, client: httpx.AsyncClient | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url, self._clock = url, clock
        self._client = client or httpx.AsyncClient(follow_redirects=False)
        self._keys: Mapping[str, PyJWK] = {}
        self._refreshed_for_unknown = -UNKNOWN_KEY_SECONDS
        self._refreshing: asyncio.Task[bool] | None = None

    @property
    def loaded(self) -> bool:
        """Whether there are keys at all."""
        return bool(self._keys)

    async def find(self, kid: str) -> PyJWK | None:
        """The key, after one refresh if it is unknown and the last such refresh is a minute ago."""
        if kid not in self._keys and self._clock() - self._refreshed_for_unknown >= UNKNOWN_KEY_SECONDS:
            self._refreshed_for_unknown = self._clock()
            self._refreshing = asyncio.create_task(self.refresh())
        if kid not in self._keys and self._refreshing is not None:
            await asyncio.shield(self._refreshing)
        return self._keys.get(kid)

    async def refresh(self) -> bool:
        """Fetch the keys; the old ones stay when that fails."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = parse_keys(orjson.loads(await self._fetch()))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError) as error:
            log.warning("jwks_refresh_failed", error=type(error).__name__)
            return False
        log.debug("jwks_refreshed", keys=len(self._keys))
        return True

    async def _fetch(self) -> bytes:
        body = bytearray()
        async with self._client.stream("GET", self._url, headers={"Accept": "application/json"}) as answer:
            if answer.status_code != 200:
                raise ValueError("the issuer did not answer 200")
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError("the JWKS is too large")
        return bytes(body)

    async def run(self) -> None:
        """Fetch now, with backoff until it works once, and then every ten minutes."""
        pause = RETRY_SECONDS
        while True:
            if await self.refresh() or self.loaded:
                pause = RETRY_SECONDS
                await asyncio.sleep(REFRESH_SECONDS)
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)

    async def close(self) -> None:
        """Hang up."""
        await self._client.aclose()
