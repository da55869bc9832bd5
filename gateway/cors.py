"""CORS: which pages on other origins may call the API (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from starlette.responses import Response
from starlette.types import Scope

ANY_ORIGIN = "*"
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-Match, Last-Event-ID, Prefer"
# Browsers show these to a page: each header that the API documents, and those of rate limits.
RESPONSE_HEADERS = (
    "Location, ETag, Retry-After, X-Request-Id, Preference-Applied, WWW-Authenticate, Allow, "
    "RateLimit, RateLimit-Policy, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, "
    "X-Speech-Provider, X-Speech-Model, X-Speech-Quality"
)
# How long a browser may keep the answer to a preflight.
MAX_AGE_SECONDS = 600

Headers = Iterable[tuple[bytes, bytes]]


class Cors:
    """Allows pages on these origins to call the API, without cookies. Without origins it changes nothing.

    Starlette's CORSMiddleware does not fit. It refuses preflights in plain text, and it can't add headers to the
    answers that `Edge` and the protocol make outside the app.
    """

    def __init__(self, origins: Collection[str] = ()) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any = ANY_ORIGIN in origins

    def preflight(self, scope: Scope) -> Response | None:
        """Return the answer to a preflight from an allowed origin, for any path. None for other requests."""
        is_preflight = scope["method"] == "OPTIONS" and any(
            name == b"access-control-request-method" for name, _ in scope["headers"]
        )
        if not is_preflight or self._allowed(scope["headers"]) is None:
            return None
        headers = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": REQUEST_HEADERS,
            "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
        }
        return Response(status_code=204, headers=headers)

    def added(self, headers: Headers, *, request: Headers) -> Headers:
        """Return an answer's headers with those of CORS added. Names of headers are in lower case."""
        if not self._origins:
            return headers
        headers = list(headers)
        vary = b", ".join([*(value for name, value in headers if name == b"vary"), b"Origin"])
        # Vary is always there: a cache must not give the answer to one origin, or to none, to another.
        result = [*(header for header in headers if header[0] != b"vary"), (b"vary", vary)]
        if (origin := self._allowed(request)) is not None:
            result.append((b"access-control-allow-origin", origin))
            result.append((b"access-control-expose-headers", RESPONSE_HEADERS.encode()))
        return result

    def _allowed(self, request: Headers) -> bytes | None:
        """Return the value of Access-Control-Allow-Origin if the request's origin is allowed."""
        if self._any:
            return ANY_ORIGIN.encode()
        sent = [value for name, value in request if name == b"origin"]
        return sent[0] if len(sent) == 1 and sent[0] in self._origins else None
