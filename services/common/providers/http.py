"""The HTTP clients of the vendors' SDKs, all made in one place: proxies, certificates, redirects."""

import httpx2

from services.kit.http_client import proxy_for

LIMITS = httpx2.Limits(max_connections=1_000, max_keepalive_connections=100)


def http_client(base_url: str, *, timeout: httpx2.Timeout) -> httpx2.AsyncClient:
    """A client for one server. The environment gives it the proxy of `proxy_for` and SSL_CERT_FILE, and no credentials.

    Raises UnsupportedProxy.
    """
    return httpx2.AsyncClient(
        proxy=proxy_for(base_url),
        verify=httpx2.create_ssl_context(trust_env=True),
        trust_env=False,
        timeout=timeout,
        limits=LIMITS,
        follow_redirects=True,
    )
