"""Who is calling: a bearer token, verified once and remembered for a short while."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from backendai.common.v1 import common_pb2
from jwt import PyJWK
from jwt.utils import base64url_decode, base64url_encode

from gateway.jwks import RemoteKeys
from gateway.problems import Problem, unavailable
from services.kit.ids import parse_id

SCHEMES = ("bearer", "jwt")
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
LEEWAY_SECONDS = 5
REMEMBERED_SECONDS = 60.0
MAX_REMEMBERED = 1_024
MAX_USER_ID_CHARACTERS = 255
ROLES: Mapping[str, common_pb2.Role.ValueType] = {
    "viewer": common_pb2.ROLE_VIEWER,
    "member": common_pb2.ROLE_MEMBER,
    "admin": common_pb2.ROLE_ADMIN,
    "owner": common_pb2.ROLE_OWNER,
}


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller and its role in each workspace that its token names."""

    user_id: str
    roles: Mapping[str, common_pb2.Role.ValueType]


class Keys(Protocol):
    """Knows the key, and the one algorithm, that a token must be signed with."""

    async def find(self, header: Mapping[str, Any]) -> tuple[Any, str] | None:
        """For a token's unverified header; None when there is no such key."""


class SharedSecret:
    """HS256 with one secret, for development."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def find(self, header: Mapping[str, Any]) -> tuple[str, str]:
        """The secret, whatever the header says."""
        return self._secret, "HS256"


class IssuerKeys:
    """The public key that `kid` names, with the algorithm of that key; `jku`, `x5u` and `jwk` are not even read."""

    def __init__(self, keys: RemoteKeys) -> None:
        self._keys = keys

    async def find(self, header: Mapping[str, Any]) -> tuple[PyJWK, str] | None:
        """Unavailable while the issuer has never been reached."""
        kid = header.get("kid")
        if not isinstance(kid, str):
            return None
        key = await self._keys.find(kid)
        if key is None and not self._keys.loaded:
            raise unavailable("The token can't be checked now. Try again.", code="auth_unavailable")
        return (key, key.algorithm_name) if key is not None else None


class Authenticator:
    """Turns an Authorization header into a Principal, or a 401."""

    def __init__(
        self, keys: Keys, *, issuer: str | None, audience: str | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys, self._issuer, self._audience, self._clock = keys, issuer, audience, clock
        self._options: Any = {"require": ["exp", "sub"], "verify_exp": False, "verify_aud": audience is not None}
        self._remembered: dict[bytes, tuple[Principal, float]] = {}

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """The caller of a request with these headers (names in lower case)."""
        token = _token([value for name, value in headers if name == b"authorization"])
        digest = hashlib.sha256(token.encode()).digest()
        remembered = self._remembered.get(digest)
        if remembered is not None and self._clock() < remembered[1]:
            return remembered[0]
        principal, expires_at = await self._verify(token)
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[digest] = principal, min(expires_at, self._clock() + REMEMBERED_SECONDS)
        return principal

    async def _verify(self, token: str) -> tuple[Principal, float]:
        """The caller and when the token expires."""
        try:
            _require_canonical(token)
            found = await self._keys.find(jwt.get_unverified_header(token))
            if found is None:
                raise _refused()
            key, algorithm = found
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                options=self._options,
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
            )
            return _principal(claims), self._expiry(claims)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
            raise _refused() from error

    def _expiry(self, claims: Mapping[str, Any]) -> float:
        """Checked here: a clock that is behind is forgiven for `nbf` and `iat`, never for `exp`."""
        expires_at = claims["exp"]
        if isinstance(expires_at, bool) or not isinstance(expires_at, int | float) or not math.isfinite(expires_at):
            raise ValueError("exp")
        if expires_at <= self._clock():
            raise jwt.ExpiredSignatureError
        return float(expires_at)


def _token(values: list[bytes]) -> str:
    if len(values) > 1:
        raise Problem(400, "bad_request", "A request carries one Authorization header.")
    scheme, _, token = (values[0].decode("latin-1") if values else "").partition(" ")
    if scheme.lower() not in SCHEMES or not token.strip():
        raise Problem(
            401, "unauthenticated", "Send a token: Authorization: Bearer <jwt>.", headers={"WWW-Authenticate": "Bearer"}
        )
    return token.strip()


def _require_canonical(token: str) -> None:
    """One token has one spelling; the decoder itself skips what is no base64 and ignores a last digit's idle bits."""
    if COMPACT.fullmatch(token) is None:
        raise ValueError("token")
    signature = token.rpartition(".")[2]
    if base64url_encode(base64url_decode(signature)) != signature.encode():
        raise ValueError("signature")


def _refused() -> Problem:
    """One answer to all bad tokens: which check failed is nothing to tell a forger."""
    return Problem(
        401,
        "invalid_token",
        "The token is not valid, or not any more.",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


def _principal(claims: Mapping[str, Any]) -> Principal:
    user_id = claims["sub"]
    if not isinstance(user_id, str) or len(user_id) > MAX_USER_ID_CHARACTERS or "\0" in user_id or not user_id.strip():
        raise ValueError("sub")
    user_id.encode()  # a lone surrogate is a ValueError
    return Principal(user_id, _roles(claims.get("workspaces", {})))


def _roles(claim: Any) -> dict[str, common_pb2.Role.ValueType]:
    if not isinstance(claim, dict):
        raise ValueError("workspaces")
    roles = {str(parse_id(workspace)): ROLES[role] for workspace, role in claim.items()}
    if "None" in roles or len(roles) != len(claim):
        raise ValueError("workspaces")
    return roles
