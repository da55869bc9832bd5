"""An issuer's public keys: which are used, when they are fetched, and what happens when the issuer is away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.auth import Authenticator, IssuerKeys, Principal
from gateway.jwks import RemoteKeys
from gateway.problems import Problem
from tests.unit.gateway.conftest import DEAD
from tests.unit.gateway.samples import WORKSPACE

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
FORGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ALGORITHMS: dict[str, Any] = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


def public_jwk(key: Any, kid: str, algorithm: str, **more: Any) -> dict[str, Any]:
    jwk: dict[str, Any] = json.loads(ALGORITHMS[algorithm].to_jwk(key.public_key()))
    return {**jwk, "kid": kid, "alg": algorithm, "use": "sig", **more}


ALL_KEYS = [public_jwk(RSA, "rsa", "RS256"), public_jwk(EC, "ec", "ES256"), public_jwk(ED, "ed", "EdDSA")]


class Issuer:
    """An HTTP server that answers every request with the same body, and counts them."""

    def __init__(self) -> None:
        self.body, self.status, self.requests = json.dumps({"keys": ALL_KEYS}).encode(), 200, 0
        self.silent = False
        self._never = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        if self.silent:
            await self._never.wait()
        head = f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(self.body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + self.body)
        await writer.drain()
        writer.close()

    def wake(self) -> None:
        self._never.set()


class Clock:
    """Time that a test moves."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    server = await asyncio.start_server(issuer, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"  # type: ignore[attr-defined]
    yield issuer
    issuer.wake()
    server.close()
    await server.wait_closed()


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(issuer: Issuer, clock: Clock) -> AsyncIterator[RemoteKeys]:
    keys = RemoteKeys(issuer.url, clock=clock)  # type: ignore[attr-defined]
    yield keys
    await keys.close()


def signed(key: Any, algorithm: str, kid: str | None, **headers: Any) -> str:
    claims = {"sub": "alice", "exp": int(time.time()) + 60, "workspaces": {WORKSPACE: "owner"}}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid, **headers} if kid else headers)


async def accepted(keys: RemoteKeys, token: str) -> Principal:
    authenticator = Authenticator(IssuerKeys(keys), issuer=None, audience=None)
    return await authenticator.authenticate([(b"authorization", f"Bearer {token}".encode())])


async def refusal(keys: RemoteKeys, token: str) -> Problem:
    with pytest.raises(Problem) as refused:
        await accepted(keys, token)
    return refused.value


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")])
async def test_tokens_of_the_issuers_keys_are_taken(keys: RemoteKeys, key: Any, algorithm: str, kid: str) -> None:
    assert (await accepted(keys, signed(key, algorithm, kid))).user_id == "alice"


def rsa_public_pem() -> bytes:
    return RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def hs256_with_the_public_key() -> str:
    encoded = jwt.utils.base64url_encode
    claims = json.dumps({"sub": "alice", "exp": int(time.time()) + 60}).encode()
    body = encoded(b'{"alg":"HS256","kid":"rsa"}') + b"." + encoded(claims)
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(body, rsa_public_pem())
    return (body + b"." + encoded(signature)).decode()


@pytest.mark.parametrize(
    "token",
    [
        signed(FORGER, "RS256", "rsa"),
        signed(RSA, "RS256", None),
        signed(RSA, "RS256", "ec"),
        signed(RSA, "RS384", "rsa"),
        signed(RSA, "PS256", "rsa"),
        hs256_with_the_public_key(),
    ],
    ids=["a forger's key", "no kid", "another key's kid", "RS384", "PS256", "HS256 with the public key"],
)
async def test_other_tokens_are_401(keys: RemoteKeys, token: str) -> None:
    assert (await refusal(keys, token)).status == 401


async def test_keys_that_a_token_brings_or_names_are_not_looked_at(keys: RemoteKeys, issuer: Issuer) -> None:
    forged = public_jwk(FORGER, "rsa", "RS256")
    headers = {"jwk": forged, "jku": f"{issuer.url}?forged", "x5u": f"{issuer.url}?forged"}  # type: ignore[attr-defined]
    assert (await refusal(keys, signed(FORGER, "RS256", "rsa", **headers))).status == 401
    assert issuer.requests == 1


async def test_unknown_kids_cause_one_fetch_a_minute(keys: RemoteKeys, issuer: Issuer, clock: Clock) -> None:
    strange = [signed(FORGER, "RS256", f"unknown-{number}") for number in range(20)]
    await asyncio.gather(*(refusal(keys, token) for token in strange))
    clock.now += 59
    await refusal(keys, strange[0])
    assert issuer.requests == 1
    clock.now += 2
    await refusal(keys, strange[0])
    assert issuer.requests == 2


async def test_a_new_key_is_found_when_a_token_names_it(keys: RemoteKeys, issuer: Issuer, clock: Clock) -> None:
    issuer.body = json.dumps({"keys": ALL_KEYS[:1]}).encode()
    await accepted(keys, signed(RSA, "RS256", "rsa"))
    issuer.body = json.dumps({"keys": ALL_KEYS}).encode()
    clock.now += 61
    assert (await accepted(keys, signed(EC, "ES256", "ec"))).user_id == "alice"


@pytest.mark.parametrize("broken", ["status", "text", "shape", "size"])
async def test_the_old_keys_stay_when_a_refresh_fails(keys: RemoteKeys, issuer: Issuer, broken: str) -> None:
    assert await keys.refresh()
    if broken == "status":
        issuer.status = 500
    else:
        issuer.body = {"text": b"<html>", "shape": b'{"keys": 1}', "size": b" " * 2**21}[broken]
    assert not await keys.refresh()
    assert (await accepted(keys, signed(RSA, "RS256", "rsa"))).user_id == "alice"


async def test_a_key_that_is_no_signing_key_of_ours_is_left_out(keys: RemoteKeys, issuer: Issuer) -> None:
    symmetric = {"kty": "oct", "kid": "oct", "k": "c2VjcmV0", "alg": "HS256"}
    strange = [
        symmetric,
        public_jwk(RSA, "enc", "RS256", use="enc"),
        public_jwk(RSA, "rs512", "RS256", alg="RS512"),
        {"kty": "RSA", "kid": "cut"},
        {"kid": 7},
        "key",
        None,
    ]
    issuer.body = json.dumps({"keys": [*strange, ALL_KEYS[0]]}).encode()
    assert await keys.refresh()
    assert set(keys._keys) == {"rsa"}


async def test_without_any_keys_the_answer_is_503_and_not_401() -> None:
    keys = RemoteKeys(f"http://{DEAD}/jwks.json")
    refused = await refusal(keys, signed(RSA, "RS256", "rsa"))
    await keys.close()
    assert (refused.status, refused.code) == (503, "auth_unavailable")
    assert refused.headers == {"Retry-After": "1"}


async def test_a_silent_issuer_is_waited_for_briefly(
    keys: RemoteKeys, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.jwks.FETCH_SECONDS", 0.05)
    issuer.silent = True
    assert not await keys.refresh()
