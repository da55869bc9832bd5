"""Ten thousand tokens that are nearly good: not one is taken, and not one breaks anything."""

import base64
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from gateway.edge import MAX_HEADER_BYTES
from gateway.server import Gateway
from tests.unit.gateway.samples import OTHER_WORKSPACE, SECRET, token

MUTANTS = 10_000
URL_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Also what a lenient decoder would skip or take for something else.
STRANGE = URL_SAFE + "=+/.!~*'(),;:@&$ \t%\x00\x7f\x80\xa0\xe9\xff"

Mutate = Callable[[str, random.Random], str]


def flipped(good: str, chance: random.Random) -> str:
    at = chance.randrange(len(good))
    return good[:at] + chance.choice(STRANGE) + good[at + 1 :]


def shortened(good: str, chance: random.Random) -> str:
    at = chance.randrange(len(good))
    return good[:at] + good[at + chance.randint(1, 40) :]


def lengthened(good: str, chance: random.Random) -> str:
    at = chance.randrange(len(good) + 1)
    return good[:at] + "".join(chance.choices(STRANGE, k=chance.randint(1, 8))) + good[at:]


def swapped(good: str, chance: random.Random) -> str:
    first, second = sorted(chance.sample(range(len(good)), 2))
    return good[:first] + good[second] + good[first + 1 : second] + good[first] + good[second + 1 :]


def cased(good: str, chance: random.Random) -> str:
    at = chance.randrange(len(good))
    return good[:at] + good[at].swapcase() + good[at + 1 :]


def with_idle_bits(good: str, chance: random.Random) -> str:
    """The same signature to a decoder that ignores what the last digit has to spare."""
    return good[:-1] + chance.choice(URL_SAFE)


def padded(good: str, chance: random.Random) -> str:
    segments = good.split(".")
    segments[chance.randrange(3)] += "=" * chance.randint(1, 3)
    return ".".join(segments)


def shuffled(good: str, chance: random.Random) -> str:
    segments = good.split(".")
    chance.shuffle(segments)
    return ".".join(segments[: chance.randint(1, 3)] + chance.choices(segments, k=chance.randint(0, 3)))


def promoted(good: str, chance: random.Random) -> str:
    """Other claims under the old signature."""
    header, claims, signature = good.split(".")
    changes: list[dict[str, Any]] = [
        {"sub": "root"},
        {"exp": 2**53},
        {"workspaces": {OTHER_WORKSPACE: "owner"}},
        {"iat": 0},
        {"admin": chance.random()},
    ]
    return ".".join((header, _encode({**_decode(claims), **chance.choice(changes)}), signature))


def with_header(good: str, chance: random.Random) -> str:
    """Another header under the old signature, or none."""
    _, claims, signature = good.split(".")
    headers: list[dict[str, Any]] = [
        {"alg": "none"},
        {"alg": "None", "typ": "JWT"},
        {"alg": "HS512"},
        {"alg": "RS256"},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
        {"alg": "HS256", "jku": f"http://127.0.0.1:1/{chance.random()}"},
        {"alg": "HS256", "jwk": {"kty": "oct", "k": _encode(SECRET)}},
        {"alg": "HS256", "kid": "../" * chance.randint(1, 9)},
        {"alg": ["HS256"]},
        {"alg": None},
        {},
    ]
    return ".".join((_encode(chance.choice(headers)), claims, chance.choice((signature, "", "AA"))))


def rubbish(good: str, chance: random.Random) -> str:
    return "".join(chance.choices(STRANGE, k=chance.randint(1, 400)))


def nested(good: str, chance: random.Random) -> str:
    """Claims that are deep, long or no object."""
    header, _, signature = good.split(".")
    odd = chance.choice(["[" * 3_000, "null", "1e999", '{"exp":1e999}', '"x"', '{"sub":"\\ud800"}', "{" * 50, "\xff"])
    return ".".join((header, base64.urlsafe_b64encode(odd.encode("latin-1")).rstrip(b"=").decode(), signature))


MUTATIONS: list[Mutate] = [
    flipped,
    shortened,
    lengthened,
    swapped,
    cased,
    with_idle_bits,
    padded,
    shuffled,
    promoted,
    with_header,
    rubbish,
    nested,
]


def _encode(document: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def _decode(segment: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=="))
    return found


def mutants(good: str) -> Iterator[str]:
    """Each another spelling than the good one's; what surrounds a header's value does not count."""
    chance, made = random.Random(20_260_101), 0
    while made < MUTANTS:
        mutant = MUTATIONS[made % len(MUTATIONS)](good, chance)
        if mutant.strip() != good:
            made += 1
            yield mutant


async def status_of(gateway: Gateway, authorization: bytes) -> int:
    """What the app answers to a list of models; no HTTP client stands between, which might tidy things up."""
    path = "/api/models/"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"gateway"), (b"authorization", authorization)],
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await gateway.app(scope, receive, send)
    (status,) = statuses
    return status


async def test_ten_thousand_mutated_tokens_are_refused_and_break_nothing(gateway: Gateway) -> None:
    good = token()
    assert await status_of(gateway, f"Bearer {good}".encode()) == 200
    answered: dict[int, int] = {}
    for mutant in mutants(good):
        sent = f"Bearer {mutant}".encode("latin-1")
        status = await status_of(gateway, sent)
        assert status == 401 or (status == 431 and len(sent) > MAX_HEADER_BYTES // 2), mutant
        answered[status] = answered.get(status, 0) + 1
    assert sum(answered.values()) == MUTANTS
