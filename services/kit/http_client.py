"""Proxies of outgoing HTTP: one rule for every client that this system makes."""

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


class UnsupportedProxy(ValueError):
    """The environment names a proxy that is no HTTP proxy."""


def is_loopback(url: str) -> bool:
    """True if the URL's host is this machine: localhost, 127.0.0.0/8 or ::1."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: str) -> str | None:
    """The HTTP proxy that the environment names for this URL; None to connect directly.

    HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY count. Loopback is never proxied, whatever they say.
    Raises UnsupportedProxy for a SOCKS proxy: connecting directly would bypass it.
    """
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise UnsupportedProxy(f"{parts.scheme.upper()}_PROXY or ALL_PROXY names a proxy that is not an HTTP proxy.")
    return proxy
