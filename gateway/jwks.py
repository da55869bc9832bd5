"""The issuer's public keys: fetched ahead, kept when the issuer can't be reached, never fetched at a token's wish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK

from services.kit.http_client import UnsupportedProxy, proxy_for

log = structlog.get_logger()

FETCH_SECONDS = 3.0
REFRESH_SECONDS = 600.0
UNKNOWN_KEY_SECONDS = 60.0
RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
MAX_BYTES = 1024 * 1024
MAX_REDIRECTS = 3
MAX_CANDIDATES = 16
"""How many keys one token is tried with: each try costs a verification."""
MAX_LOGGED_KEYS = 20
MAX_LOGGED_CHARACTERS = 100
MIN_RSA_BITS = 2048
BOM = b"\xef\xbb\xbf"
# By kty and crv: PyJWT's name of the algorithm, and the names that keys and tokens give it. RFC 9864 renames EdDSA.
ALGORITHMS: dict[tuple[str, str | None], tuple[str, tuple[str, ...]]] = {
    ("RSA", None): ("RS256", ("RS256",)),
    ("EC", "P-256"): ("ES256", ("ES256",)),
    ("OKP", "Ed25519"): ("EdDSA", ("EdDSA", "Ed25519")),
}

with suppress(ValueError):  # a later PyJWT knows it
    jwt.register_algorithm("Ed25519", jwt.algorithms.OKPAlgorithm())


class Unusable(ValueError):
    """A key, or a whole document, that can't be used. The text names the reason and never key material."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key that verifies signatures."""

    kid: str | None
    algorithms: tuple[str, ...]
    """The values of a token's `alg` that name this key's one algorithm."""
    public_key: Any


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A key of a JWKS that is not used, as it is logged."""

    kid: str
    reason: str


def parse_keys(document: Any) -> tuple[list[Key], list[LeftOut]]:
    """The usable signing keys of a JWKS, in its order, and the others. Raises Unusable for what is no JWKS."""
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise Unusable("not a JWKS")
    keys, left_out = [], []
    for jwk in found:
        try:
            keys.append(_parse_key(jwk))
        except Unusable as error:
            left_out.append(LeftOut(_shown_kid(jwk), str(error)))
    return keys, left_out


def _parse_key(jwk: Any) -> Key:
    """Unset members may be missing or null."""
    if not isinstance(jwk, dict):
        raise Unusable("not an object")
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise Unusable("kid is not a string")
    _check_purpose(jwk)
    algorithm, names = _algorithm_of(jwk)
    return Key(kid, names, _public_key(jwk, algorithm))


def _check_purpose(jwk: dict[str, Any]) -> None:
    if jwk.get("use") not in (None, "", "sig"):
        raise Unusable("use is not sig")
    operations = jwk.get("key_ops")
    if isinstance(operations, list) and operations and "verify" not in operations and "sign" not in operations:
        raise Unusable("key_ops has no verify")


def _algorithm_of(jwk: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    kty, crv, alg = (jwk.get(name) for name in ("kty", "crv", "alg"))
    curve = None if kty == "RSA" else crv
    found = ALGORITHMS.get((kty, curve)) if isinstance(kty, str) and isinstance(curve, str | None) else None
    if found is None:
        raise Unusable("kty or crv is not supported")
    if alg is not None and alg not in found[1]:
        raise Unusable("alg is not supported for this key")
    return found


def _public_key(jwk: dict[str, Any], algorithm: str) -> Any:
    if "d" in jwk:  # published, so anyone can sign with it
        raise Unusable("a private key")
    try:
        key = PyJWK(jwk, algorithm).key
    except Exception:  # whatever a malformed key makes the libraries raise; their texts hold the key
        raise Unusable("the key can't be read") from None
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise Unusable(f"an RSA key under {MIN_RSA_BITS} bits")
    return key


def _shown_kid(jwk: Any) -> str:
    kid = jwk.get("kid") if isinstance(jwk, dict) else None
    return kid[:MAX_LOGGED_CHARACTERS] if isinstance(kid, str) else ""


class RemoteKeys:
    """Keys of a JWKS address. Tokens that no key verifies cause at most one fetch a minute."""

    def __init__(
        self, url: str, *, client: httpx.AsyncClient | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url, self._clock = url, clock
        self._client = client
        self._keys: Sequence[Key] = ()
        self._left_out: Sequence[LeftOut] = ()
        self._refreshed_for_unknown = -UNKNOWN_KEY_SECONDS
        self._refreshing: asyncio.Task[bool] | None = None

    @property
    def loaded(self) -> bool:
        """Whether there are keys at all."""
        return bool(self._keys)

    def find(self, kid: str | None, algorithm: str) -> list[Key]:
        """The keys that may have signed a token with this `kid` and `alg`.

        Those of that `kid`. Else those without a `kid`, or the only key of the set if the token has no `kid`.
        """
        named = [key for key in self._keys if key.kid == kid] or [key for key in self._keys if key.kid is None]
        if not named and kid is None and len(self._keys) == 1:
            named = list(self._keys)
        return [key for key in named if algorithm in key.algorithms][:MAX_CANDIDATES]

    async def refresh_for_unknown(self) -> None:
        """Fetch the keys for a token that none of them verifies, unless the last such fetch is within a minute.

        Waits for a fetch that is under way.
        """
        if self._clock() - self._refreshed_for_unknown >= UNKNOWN_KEY_SECONDS:
            self._refreshed_for_unknown = self._clock()
            self._refreshing = asyncio.create_task(self.refresh())
        if self._refreshing is not None:
            await asyncio.shield(self._refreshing)

    async def refresh(self) -> bool:
        """Fetch the keys; the old ones stay when that fails. Raises nothing, whatever the issuer sends."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                body = await self._fetch()
                # A megabyte of keys takes a second to read.
                self._keys, left_out = await asyncio.to_thread(_parse, body)
        except Exception as error:
            detail = str(error) if isinstance(error, Unusable | UnsupportedProxy) else None
            log.warning("jwks_refresh_failed", error=type(error).__name__, detail=detail)
            return False
        log.debug("jwks_refreshed", keys=len(self._keys))
        self._report(left_out)
        return True

    def _report(self, left_out: Sequence[LeftOut]) -> None:
        """Log the keys that are left out, once for each change."""
        if left_out and left_out != self._left_out:
            shown = [{"kid": key.kid, "reason": key.reason} for key in left_out[:MAX_LOGGED_KEYS]]
            log.warning("jwks_keys_left_out", used=len(self._keys), left_out=len(left_out), keys=shown)
        self._left_out = left_out

    async def _fetch(self) -> bytes:
        if self._client is None:  # made here, so that a proxy that can't be used does not end the process
            self._client = make_client(self._url)
        body = bytearray()
        async with self._client.stream("GET", self._url, headers={"Accept": "application/json"}) as answer:
            if answer.status_code != 200:
                raise Unusable(f"the issuer answered {answer.status_code}")
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Unusable("the JWKS is too large")
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
        """Close the HTTP client."""
        if self._client is not None:
            await self._client.aclose()


def _parse(body: bytes) -> tuple[list[Key], list[LeftOut]]:
    return parse_keys(orjson.loads(body.removeprefix(BOM)))


def make_client(url: str) -> httpx.AsyncClient:
    """A client for this address. Redirects are followed, but not out of TLS. Raises UnsupportedProxy."""

    async def refuse_downgrade(request: httpx.Request) -> None:
        if url.lower().startswith("https:") and request.url.scheme != "https":
            raise Unusable("a redirect leaves https")

    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(proxy=proxy_for(url)),
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        event_hooks={"request": [refuse_downgrade]},
    )
