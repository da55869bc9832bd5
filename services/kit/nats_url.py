"""The one reading of NATS_URL. No error repeats any part of a value: it may be the password."""

import re
from dataclasses import dataclass
from typing import Annotated, TypeAlias
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field

SCHEMES = ("nats", "tls", "ws", "wss")
DEFAULT_PORTS = {"nats": 4222, "tls": 4222, "ws": 80, "wss": 443}
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")


class InvalidNatsUrl(ValueError):
    """Not a NATS URL. The text says what is wrong without any part of the value."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server to dial. `user` without a password is a token."""

    address: str
    user: str | None = None
    password: str | None = None

    def beside(self, address: str) -> "Endpoint":
        """Another server of the same cluster, for the same user."""
        return Endpoint(address, self.user, self.password)


def parse(text: str) -> list[Endpoint]:
    """Read one URL or several, comma separated: nats://user:password@host:4222, tls://, ws://, wss:// or host:port."""
    endpoints = [_parse_one(part) for part in map(str.strip, text.split(",")) if part]
    if not endpoints:
        raise InvalidNatsUrl("it names no server")
    return endpoints


def _parse_one(text: str) -> Endpoint:
    if _UNPRINTABLE.search(text):
        raise InvalidNatsUrl("it has a blank or a line end inside: a password's blank is %20")
    text = text if "://" in text else f"nats://{text}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidNatsUrl("a user name or password with : / ? # or , in it must be percent-encoded") from None
    if parts.scheme not in SCHEMES:
        raise InvalidNatsUrl(f"it must start with {', '.join(f'{scheme}://' for scheme in SCHEMES)} or be host:port")
    is_web = parts.scheme in ("ws", "wss")
    if not parts.hostname or port == 0 or parts.query or parts.fragment or (parts.path not in ("", "/") and not is_web):
        raise InvalidNatsUrl("it must be scheme://user:password@host:port, with : / ? # and , percent-encoded in both")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    address = f"{parts.scheme}://{host}:{port or DEFAULT_PORTS[parts.scheme]}{parts.path if is_web else ''}"
    user, password = (None if given is None else unquote(given) for given in (parts.username, parts.password))
    return Endpoint(address, user or None, password)


def _check(text: str) -> str:
    parse(text)
    return text.strip()


NatsUrl: TypeAlias = Annotated[str, AfterValidator(_check), Field(repr=False)]
"""A setting that holds one or several URLs of NATS servers."""
