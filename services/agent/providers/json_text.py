"""JSON text out of what a provider sent, which may hold half a surrogate pair."""

import json

import orjson


def dumps(value: object) -> str:
    """The value as JSON text. The text may hold half a surrogate pair, if the value does."""
    try:
        return orjson.dumps(value).decode()
    except (TypeError, orjson.JSONEncodeError):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
