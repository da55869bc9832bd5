"""Reading JSON that a provider sent, which may hold half a surrogate pair or be no JSON at all."""

import json

import orjson

MAX_BYTES = 32 * 1024 * 1024


def parse_json(body: bytes | str) -> object:
    """The document. Text in it may hold half a surrogate pair: see `replace_unstorable`. Raises ValueError."""
    if len(body) > MAX_BYTES:
        raise ValueError("too large")
    try:
        return orjson.loads(body.lstrip(b"\xef\xbb\xbf") if isinstance(body, bytes) else body.lstrip("\ufeff"))
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        pass
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    try:
        return json.loads(text.lstrip("\ufeff"), strict=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
