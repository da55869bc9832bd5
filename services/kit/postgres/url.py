"""The one reading of DATABASE_URL and MIGRATION_DATABASE_URL.

Everything that connects takes its parameters from here. No error repeats any part of a value: it may be the password.
"""

import re
from typing import Annotated, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import AfterValidator, BeforeValidator, SecretStr

Parameters: TypeAlias = dict[str, str]
"""libpq's connection parameters by name."""

# Drivers and tools each write the scheme in their own way. libpq knows only the first part.
_SCHEME = re.compile(r"^(?:jdbc:)?postgres(?:ql)?(?:\+[a-z0-9_]+)?://", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"^[a-z][a-z0-9+.:-]*://", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNKNOWN_PARAMETER = re.compile(r'invalid URI query parameter: "([A-Za-z_]{1,40})"')
# Values that libpq checks only when it connects.
_WORDS = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}


class InvalidDatabaseUrl(ValueError):
    """Not a PostgreSQL URL or DSN. The text says what is wrong without any part of the value."""


def parse(text: str) -> Parameters:
    """Read `postgresql://…` (also postgres://, postgresql+driver://, jdbc:postgresql://) or `host=… dbname=…`.

    White space around the value is dropped. A list of hosts means the one that accepts writes, unless
    target_session_attrs says otherwise.
    """
    value = text.strip()
    if not value:
        raise InvalidDatabaseUrl("it is empty")
    if _CONTROL.search(value):
        raise InvalidDatabaseUrl("it has a line end or another control character inside")
    value, is_url = _SCHEME.subn("postgresql://", value)
    if not is_url and (_ANY_SCHEME.match(value) or "=" not in value):
        raise InvalidDatabaseUrl("it must start with postgresql://, or be key=value pairs")
    if is_url and re.search(r"\s", value):
        raise InvalidDatabaseUrl("it has a blank inside: a password's blank is %20 in a URL")
    parameters = _libpq_parameters(value)
    if is_url and "@" in parameters.get("host", ""):
        raise InvalidDatabaseUrl("a user name or password with @ : / ? # or % in it must be percent-encoded")
    _check_ports(parameters.get("port", ""))
    _check_words(parameters)
    if "," in parameters.get("host", "") + parameters.get("hostaddr", ""):
        parameters.setdefault("target_session_attrs", "read-write")
    return parameters


def normalize(text: str) -> str:
    """The same parameters as libpq's `key=value` text, which every reader takes."""
    return make_conninfo("", **parse(text))


def _libpq_parameters(value: str) -> Parameters:
    try:
        return {name: str(given) for name, given in conninfo_to_dict(value).items() if given is not None}
    except psycopg.ProgrammingError as error:
        unknown = _UNKNOWN_PARAMETER.search(str(error))
    # Behind an @ it is a parameter's name; before one it may be a part of a password.
    if unknown and "@" not in value.partition("?")[2]:
        raise InvalidDatabaseUrl(f"libpq has no connection parameter named {unknown[1]}")
    raise InvalidDatabaseUrl("it can't be parsed; a password with @ : / ? # or % in it must be percent-encoded")


def _check_ports(ports: str) -> None:
    """libpq would find out when it connects only."""
    for port in filter(None, ports.split(",")):
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            raise InvalidDatabaseUrl("its port is not a number from 1 to 65535")


def _check_words(parameters: Parameters) -> None:
    for name, words in _WORDS.items():
        if parameters.get(name, words[0]) not in words:
            raise InvalidDatabaseUrl(f"its {name} is none of {', '.join(words)}")


def _reveal(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _normalize_secret(value: SecretStr) -> SecretStr:
    return SecretStr(normalize(value.get_secret_value()))


DatabaseUrl: TypeAlias = Annotated[SecretStr, BeforeValidator(_reveal), AfterValidator(_normalize_secret)]
"""A setting that holds a database's URL; its value is normalized."""
