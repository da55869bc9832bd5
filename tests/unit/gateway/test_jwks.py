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
from structlog.testing import capture_logs

from gateway.auth import Authenticator, IssuerKeys, Principal
from gateway.jwks import MAX_CANDIDATES, RemoteKeys, Unusable, make_client
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
        self.headers: list[str] = []
        self._never = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        if self.silent:
            await self._never.wait()
        headers = [f"content-length: {len(self.body)}", "connection: close", *self.headers]
        head = "\r\n".join((f"HTTP/1.1 {self.status} X", *headers, "", ""))
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
    claims = {"sub": "alice", "exp": int(time.time()) + 7_200, "workspaces": {WORKSPACE: "owner"}}
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
    claims = json.dumps({"sub": "alice", "exp": int(time.time()) + 7_200}).encode()
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
    assert [key.kid for key in keys.find("rsa", "RS256")] == ["rsa"]
    assert not any(keys.find(kid, "RS256") for kid in ("enc", "rs512", "cut"))


def without(jwk: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in jwk.items() if name not in names}


RSA_KEY, EC_KEY, ED_KEY = ALL_KEYS
OTHER_EC = ec.generate_private_key(ec.SECP256R1())
NULLS = {"use": None, "alg": None, "key_ops": None, "x5c": None, "x5t": None}
ODD_SETS: dict[str, tuple[list[Any], str]] = {
    "alg Ed25519, token EdDSA": ([{**ED_KEY, "alg": "Ed25519"}], signed(ED, "EdDSA", "ed")),
    "alg Ed25519, token Ed25519": ([{**ED_KEY, "alg": "Ed25519"}], signed(ED, "Ed25519", "ed")),
    "alg EdDSA, token Ed25519": ([ED_KEY], signed(ED, "Ed25519", "ed")),
    "nulls, RSA": ([{**RSA_KEY, **NULLS}], signed(RSA, "RS256", "rsa")),
    "nulls, EC": ([{**EC_KEY, **NULLS}], signed(EC, "ES256", "ec")),
    "nulls, Ed25519": ([{**ED_KEY, **NULLS}], signed(ED, "EdDSA", "ed")),
    "only kty and numbers": ([without(RSA_KEY, "alg", "use")], signed(RSA, "RS256", "rsa")),
    "key_ops verify": ([{**RSA_KEY, "key_ops": ["verify"]}], signed(RSA, "RS256", "rsa")),
    "one key without kid": ([without(RSA_KEY, "kid")], signed(RSA, "RS256", None)),
    "a key whose kid is null": ([{**RSA_KEY, "kid": None}], signed(RSA, "RS256", None)),
    "a kid that the key lacks": ([without(RSA_KEY, "kid")], signed(RSA, "RS256", "rsa")),
    "one key with kid, token without": ([EC_KEY], signed(EC, "ES256", None)),
    "several keys without kid": (
        [without(key, "kid") for key in (public_jwk(OTHER_EC, "", "ES256"), *ALL_KEYS)],
        signed(EC, "ES256", None),
    ),
    "one kid on keys of two kinds": ([{**RSA_KEY, "kid": "1"}, {**EC_KEY, "kid": "1"}], signed(RSA, "RS256", "1")),
    "one kid on two keys of a kind": (
        [{**EC_KEY, "kid": "1"}, public_jwk(OTHER_EC, "1", "ES256")],
        signed(EC, "ES256", "1"),
    ),
    "beside an encryption key of the same kid": (
        [RSA_KEY, public_jwk(FORGER, "rsa", "RS256", use="enc", alg="RSA-OAEP")],
        signed(RSA, "RS256", "rsa"),
    ),
}


@pytest.mark.parametrize(("jwks", "token"), ODD_SETS.values(), ids=ODD_SETS.keys())
async def test_keys_as_issuers_publish_them_are_used(
    keys: RemoteKeys, issuer: Issuer, jwks: list[Any], token: str
) -> None:
    issuer.body = json.dumps({"keys": jwks}).encode()
    assert (await accepted(keys, token)).user_id == "alice"


def signed_with_hs256(secret: bytes, kid: str | None) -> str:
    return signed(secret, "HS256", kid)


WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
NEVER: dict[str, tuple[Any, str]] = {
    "symmetric": (
        {"kty": "oct", "kid": "k", "k": "c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M"},
        signed_with_hs256(b"s" * 32, "k"),
    ),
    "symmetric that calls itself RS256": (
        {"kty": "oct", "kid": "k", "alg": "RS256", "k": "c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M"},
        signed_with_hs256(b"s" * 32, "k"),
    ),
    "for encryption": (public_jwk(RSA, "k", "RS256", use="enc"), signed(RSA, "RS256", "k")),
    "for encryption by its operations": (
        public_jwk(RSA, "k", "RS256", key_ops=["encrypt", "wrapKey"]),
        signed(RSA, "RS256", "k"),
    ),
    "for RSA-OAEP": (public_jwk(RSA, "k", "RS256", alg="RSA-OAEP"), signed(RSA, "RS256", "k")),
    "P-256 by its name in COSE": (public_jwk(EC, "k", "ES256", alg="ESP256"), signed(EC, "ES256", "k")),
    "a kid that is a number": ({**RSA_KEY, "kid": 7}, signed(RSA, "RS256", None)),
    "a private key": (
        {**json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(ED)), "kid": "k"},
        signed(ED, "EdDSA", "k"),
    ),
    "P-384": (
        {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key()))},
        signed(EC, "ES256", "k"),
    ),
}


@pytest.mark.parametrize(("jwk", "token"), NEVER.values(), ids=NEVER.keys())
async def test_keys_of_another_purpose_are_never_used(
    keys: RemoteKeys, issuer: Issuer, jwk: dict[str, Any], token: str
) -> None:
    issuer.body = json.dumps({"keys": [jwk, ED_KEY]}).encode()
    assert (await refusal(keys, token)).status == 401


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_a_short_rsa_key_is_not_used(keys: RemoteKeys, issuer: Issuer) -> None:
    issuer.body = json.dumps({"keys": [public_jwk(WEAK, "weak", "RS256"), ED_KEY]}).encode()
    assert (await refusal(keys, signed(WEAK, "RS256", "weak"))).status == 401


async def test_keys_that_are_left_out_are_logged_once_for_each_change(keys: RemoteKeys, issuer: Issuer) -> None:
    oct_key = {"kty": "oct", "kid": "hmac", "k": "c2VjcmV0"}
    issuer.body = json.dumps({"keys": [oct_key, {**RSA_KEY, "kid": "enc", "use": "enc"}, ED_KEY]}).encode()
    with capture_logs() as logs:
        assert await keys.refresh()
        assert await keys.refresh()
    [event] = [entry for entry in logs if entry["event"] == "jwks_keys_left_out"]
    assert event["keys"] == [
        {"kid": "hmac", "reason": "kty or crv is not supported"},
        {"kid": "enc", "reason": "use is not sig"},
    ]
    assert "c2VjcmV0" not in str(event)
    assert RSA_KEY["n"] not in str(event)
    issuer.body = json.dumps({"keys": [oct_key, ED_KEY]}).encode()
    with capture_logs() as logs:
        assert await keys.refresh()
    assert [entry["left_out"] for entry in logs if entry["event"] == "jwks_keys_left_out"] == [1]


async def test_a_log_line_of_keys_is_bounded(keys: RemoteKeys, issuer: Issuer) -> None:
    issuer.body = json.dumps({"keys": [{"kty": "oct", "kid": "k" * 1_000}] * 500}).encode()
    with capture_logs() as logs:
        assert await keys.refresh()
    [event] = [entry for entry in logs if entry["event"] == "jwks_keys_left_out"]
    assert event["left_out"] == 500
    assert len(str(event)) < 5_000


ODD_KEYS: list[Any] = [
    None,
    7,
    "key",
    [],
    {},
    {"kty": []},
    {"kty": "EC", "crv": []},
    {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
    {"kty": "EC", "crv": "P-256", "x": 1, "y": None},
    {"kty": "EC", "crv": "P-256"},
    {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "Ed25519"},
    {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
    {"kty": "OKP", "crv": "Ed448", "x": "AA"},
    {"kty": "OKP", "crv": "X25519", "x": "AA"},
    {"kty": "RSA", "n": "", "e": ""},
    {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
    {"kty": "RSA", "n": "é", "e": "AQAB"},
    {"kty": "RSA", "n": {"a": 1}, "e": "AQAB"},
    {"kty": "RSA", "n": "A" * 100_000, "e": "AQAB"},
    {**RSA_KEY, "alg": ["RS256"]},
    {**RSA_KEY, "use": {}},
    {**RSA_KEY, "key_ops": [[]], "kid": "ops"},
    {**RSA_KEY, "kid": {}},
    {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
]


@pytest.mark.parametrize("odd", ODD_KEYS, ids=lambda odd: str(odd)[:40])
async def test_no_key_of_a_set_spoils_the_others(keys: RemoteKeys, issuer: Issuer, odd: Any) -> None:
    issuer.body = json.dumps({"keys": [odd, ED_KEY, odd]}).encode()
    assert await keys.refresh()
    assert (await accepted(keys, signed(ED, "EdDSA", "ed"))).user_id == "alice"


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"keys": null}', b"[" * 100_000, b'{"keys": [' * 50_000, b"\xff\xfe{", b'"keys"'],
    ids=lambda body: str(body[:20]),
)
async def test_no_document_ends_the_refresher(keys: RemoteKeys, issuer: Issuer, body: bytes) -> None:
    assert await keys.refresh()
    issuer.body = body
    assert not await keys.refresh()
    assert keys.loaded


async def test_a_document_of_a_mebibyte_with_a_byte_order_mark_and_another_type_is_read(
    keys: RemoteKeys, issuer: Issuer
) -> None:
    document = b"\xef\xbb\xbf" + json.dumps({"keys": ALL_KEYS}).encode()
    issuer.body = document + b" " * (2**20 - len(document))
    issuer.headers = ["content-type: text/plain"]
    assert (await accepted(keys, signed(RSA, "RS256", "rsa"))).user_id == "alice"
    issuer.body += b" "
    assert not await keys.refresh()


@pytest.fixture
async def old_address() -> AsyncIterator[Issuer]:
    """A server whose answers a test makes redirects."""
    issuer = Issuer()
    server = await asyncio.start_server(issuer, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/old"  # type: ignore[attr-defined]
    yield issuer
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_followed(issuer: Issuer, old_address: Issuer, status: int) -> None:
    old_address.status, old_address.headers = status, [f"location: {issuer.url}"]  # type: ignore[attr-defined]
    keys = RemoteKeys(old_address.url)  # type: ignore[attr-defined]
    assert await keys.refresh()
    await keys.close()


async def test_redirects_in_a_circle_end(keys: RemoteKeys, issuer: Issuer) -> None:
    issuer.status, issuer.headers = 302, [f"location: {issuer.url}"]  # type: ignore[attr-defined]
    assert not await keys.refresh()
    assert issuer.requests <= 5


async def test_a_redirect_does_not_lead_out_of_tls(issuer: Issuer) -> None:
    client = make_client("https://id.example/jwks.json")
    with pytest.raises(Unusable):
        await client.get(issuer.url)  # type: ignore[attr-defined]
    await client.aclose()
    assert issuer.requests == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "localhost", "[::1]"])
@pytest.mark.parametrize("proxy", [f"http://{DEAD}", "socks5://127.0.0.1:1"])
async def test_loopback_is_never_proxied(monkeypatch: pytest.MonkeyPatch, host: str, proxy: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    issuer = Issuer()
    server = await asyncio.start_server(issuer, host.strip("[]"), 0)
    keys = RemoteKeys(f"http://{host}:{server.sockets[0].getsockname()[1]}/jwks.json")
    assert await keys.refresh()
    await keys.close()
    server.close()
    await server.wait_closed()


async def test_an_issuer_elsewhere_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch, issuer: Issuer) -> None:
    monkeypatch.setenv("HTTP_PROXY", issuer.url)  # type: ignore[attr-defined]
    monkeypatch.delenv("NO_PROXY", raising=False)
    keys = RemoteKeys("http://id.example/jwks.json")
    assert await keys.refresh()
    await keys.close()


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "socks5h://127.0.0.1:1", "gopher://x", "http://[::1"])
async def test_a_proxy_that_can_not_be_used_does_not_end_the_process(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    keys = RemoteKeys("https://id.example/jwks.json")
    with capture_logs() as logs:
        assert not await keys.refresh()
    await keys.close()
    assert [entry["event"] for entry in logs] == ["jwks_refresh_failed"]


async def test_a_token_without_kid_is_tried_with_a_bounded_number_of_keys(keys: RemoteKeys, issuer: Issuer) -> None:
    many = [without(public_jwk(ec.generate_private_key(ec.SECP256R1()), "", "ES256"), "kid") for _ in range(40)]
    issuer.body = json.dumps({"keys": many}).encode()
    assert await keys.refresh()
    assert len(keys.find(None, "ES256")) == MAX_CANDIDATES


async def test_a_new_key_under_the_old_name_is_found(keys: RemoteKeys, issuer: Issuer, clock: Clock) -> None:
    issuer.body = json.dumps({"keys": [without(EC_KEY, "kid")]}).encode()
    await accepted(keys, signed(EC, "ES256", None))
    issuer.body = json.dumps({"keys": [without(public_jwk(OTHER_EC, "", "ES256"), "kid")]}).encode()
    clock.now += 61
    assert (await accepted(keys, signed(OTHER_EC, "ES256", None))).user_id == "alice"
    requests = issuer.requests
    await asyncio.gather(*(refusal(keys, signed(EC, "ES256", None)) for _ in range(5)))
    assert issuer.requests == requests


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
