"""Who is calling: a bearer token, verified once and remembered for a short while."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
import structlog
from backendai.common.v1 import common_pb2
from jwt.utils import base64url_decode, base64url_encode

from gateway.jwks import RemoteKeys
from gateway.problems import Problem, unavailable
from services.kit.ids import parse_id

log = structlog.get_logger()

SCHEMES = ("bearer", "jwt")
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# How far the issuer's clock may be ahead: for `iat` and `nbf`, never for `exp`.
LEEWAY_SECONDS = 60
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
    """Finds the keys that may verify a token, each with the one algorithm it is for."""

    def candidates(self, header: Mapping[str, Any]) -> AsyncGenerator[tuple[Any, str], None]:
        """For a token's unverified header. They are tried in order until one verifies the signature."""
        ...


class SharedSecret:
    """HS256 with one secret, for development."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def candidates(self, header: Mapping[str, Any]) -> AsyncGenerator[tuple[str, str], None]:
        """The secret, whatever the header says."""
        yield self._secret, "HS256"


class IssuerKeys:
    """The issuer's public keys, found by `kid` and `alg`; `jku`, `x5u` and `jwk` are not even read."""

    def __init__(self, keys: RemoteKeys) -> None:
        self._keys = keys

    async def candidates(self, header: Mapping[str, Any]) -> AsyncGenerator[tuple[Any, str], None]:
        """The keys at hand, then those that a refresh brings. Unavailable while there are no keys at all."""
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(kid, str | None) or not isinstance(algorithm, str):
            return
        tried = self._keys.find(kid, algorithm)
        for key in tried:
            yield key.public_key, algorithm
        # The issuer may have new keys, also under an old kid or without any.
        await self._keys.refresh_for_unknown()
        if not self._keys.loaded:
            raise unavailable("The token can't be checked now. Try again.", code="auth_unavailable")
        for key in self._keys.find(kid, algorithm):
            if key not in tried:
                yield key.public_key, algorithm


class Authenticator:
    """Turns an Authorization header into a Principal, or a 401."""

    def __init__(
        self, keys: Keys, *, issuer: str | None, audience: str | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys, self._issuer, self._audience, self._clock = keys, issuer, audience, clock
        self._options: Any = {
            "require": ["exp", "sub"],
            "verify_exp": False,  # times are checked here
            "verify_iat": False,
            "verify_nbf": False,
            "verify_jti": False,  # not used
            "verify_aud": audience is not None,
        }
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
            claims = await self._claims(token)
            self._check_begun(claims)
            return _principal(claims), self._expiry(claims)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
            raise _refused() from error

    async def _claims(self, token: str) -> dict[str, Any]:
        """The claims, verified by the first key that fits."""
        async with aclosing(self._keys.candidates(jwt.get_unverified_header(token))) as candidates:
            async for key, algorithm in candidates:
                with suppress(jwt.InvalidSignatureError):
                    return jwt.decode(
                        token,
                        key,
                        algorithms=[algorithm],
                        options=self._options,
                        issuer=self._issuer,
                        audience=self._audience,
                    )
        raise jwt.InvalidSignatureError

    def _check_begun(self, claims: Mapping[str, Any]) -> None:
        """Refuse a token of the future. Null is no time."""
        for name in ("iat", "nbf"):
            if claims.get(name) is not None:
                seconds = float(claims[name])
                if not math.isfinite(seconds) or seconds > self._clock() + LEEWAY_SECONDS:
                    raise jwt.ImmatureSignatureError

    def _expiry(self, claims: Mapping[str, Any]) -> float:
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
    return Principal(user_id, _roles(claims.get("workspaces")))


def _roles(claim: Any) -> dict[str, common_pb2.Role.ValueType]:
    """The role in each workspace. Null and an empty list, which is PHP's empty object, are none.

    An entry that can't be used costs its workspace alone; a claim without a usable entry is malformed.
    """
    if claim is None or claim == []:
        return {}
    if not isinstance(claim, dict):
        raise ValueError("workspaces")
    named: dict[str, set[common_pb2.Role.ValueType | None]] = {}
    for workspace, role in claim.items():
        named.setdefault(str(parse_id(workspace)), set()).add(ROLES.get(role) if isinstance(role, str) else None)
    # Two spellings of one workspace with two roles settle nothing.
    roles = {workspace: role for workspace, (role, *others) in named.items() if role is not None and not others}
    roles.pop(str(None), None)
    if claim and not roles:
        raise ValueError("workspaces")
    if len(roles) < len(claim):
        log.debug("workspaces_ignored", count=len(claim) - len(roles))
    return roles
