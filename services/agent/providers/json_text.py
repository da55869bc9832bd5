"""JSON text out of what a provider sent, which may hold half a surrogate pair."""

import json

import orjson

from services.common.providers.errors import ProviderBadResponse


def dumps(value: object) -> str:
    """The value as JSON text. The text may hold half a surrogate pair, if the value does.

    Raises ProviderBadResponse for a value that is nested too deep.
    """
    try:
        return orjson.dumps(value).decode()
    except (TypeError, orjson.JSONEncodeError):
        pass
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise ProviderBadResponse from None
