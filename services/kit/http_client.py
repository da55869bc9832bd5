"""Proxies of outgoing HTTP: one rule for every client that this system makes."""

import ipaddress
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


class UnsupportedProxy(ValueError):
    """The environment names a proxy that this system can't use. The message names the variable, never its value."""


def is_loopback(url: str) -> bool:
    """True if the host of a URL or of host:port is this machine: localhost, 127.0.0.0/8, ::1, or unspecified."""
    host = (urlsplit(url if "://" in url else f"//{url}").hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def proxy_for(url: str) -> str | None:
    """The HTTP proxy that the environment names for this URL; None to connect directly.

    HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY count. Loopback is never proxied, whatever they say.
    Raises UnsupportedProxy for a SOCKS proxy: connecting directly would bypass it.
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if is_loopback(url) or proxy_bypass(host):
        return None
    proxies = getproxies()
    name = parts.scheme if proxies.get(parts.scheme) else "all"
    proxy = proxies.get(name)
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not _is_http_proxy(proxy):
        raise UnsupportedProxy(f"{name.upper()}_PROXY must be the URL of an HTTP proxy; other kinds are not supported.")
    return proxy


def _is_http_proxy(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _short_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _short_address(host: str) -> ipaddress.IPv4Address | None:
    """An IPv4 address in the older forms that resolvers take, such as 127.1."""
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None
