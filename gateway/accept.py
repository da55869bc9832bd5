"""What a client would rather have than JSON."""

from __future__ import annotations

import re

from fastapi import Request

QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
JSON = "application/json"


def prefers(request: Request, media_type: str) -> bool:
    """Whether Accept names the media type, and likes JSON no better. A wildcard is no wish for it."""
    sent = ",".join(request.headers.getlist("accept")).lower()
    if media_type not in sent:
        return False
    qualities = dict(_quality(part) for part in sent.split(","))
    return qualities.get(media_type, 0.0) > 0 and qualities[media_type] >= qualities.get(JSON, 0.0)


def _quality(part: str) -> tuple[str, float]:
    media_type, *parameters = (word.strip() for word in part.split(";"))
    found = next((match for word in parameters if (match := QUALITY.fullmatch(word))), None)
    return media_type, float(found[1]) if found else 1.0
