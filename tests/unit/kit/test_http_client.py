"""Which proxy a request goes through: none for this machine, the environment's for all others."""

import pytest

from services.kit.http_client import UnsupportedProxy, is_loopback, proxy_for

PROXY = "http://proxy.example:3128"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No proxy to begin with."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


HERE = (
    "http://127.0.0.1:8000/v1",
    "http://127.8.9.9/",
    "http://127.1:80",
    "http://[::1]:8000/v1",
    "http://[::ffff:127.0.0.1]/",
    "http://localhost:8000",
    "http://LOCALHOST",
    "http://localhost./v1",
    "http://api.localhost:1/v1",
    "http://user:password@127.0.0.1:8000/v1",
    "http://user:password@localhost/v1",
    "http://0.0.0.0:8000",
    "http://[::]:8000",
    "127.0.0.1:4317",
    "localhost:4317",
)
ELSEWHERE = (
    "http://api.example/v1",
    "http://128.0.0.1/",
    "http://10.0.0.1:8000/v1",
    "http://[2001:db8::1]/",
    "http://localhost.example/",
    "http://127.0.0.1.example/",
    "http://localhost@api.example/",
    "http://127.0.0.1:80@api.example/",
    "api.example:4317",
)


@pytest.mark.parametrize("url", HERE)
def test_this_machine_is_known_by_all_its_names(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_other_machines_are_not_this_one(url: str) -> None:
    assert not is_loopback(url)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", [PROXY, "socks5://127.0.0.1:9"])
@pytest.mark.parametrize("url", [url for url in HERE if "://" in url])
def test_this_machine_is_never_asked_through_a_proxy(
    url: str, proxy: str, variable: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(variable, proxy)
    assert proxy_for(url) is None


@pytest.mark.parametrize("url", [url for url in ELSEWHERE if "://" in url])
def test_another_machine_is_asked_through_the_proxy(url: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTP_PROXY", PROXY)
    assert proxy_for(url) == PROXY


def test_each_scheme_has_its_variable_and_all_proxy_is_for_what_has_none(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://secure.example:1")
    assert (proxy_for("https://api.example"), proxy_for("http://api.example")) == ("http://secure.example:1", None)
    environment.setenv("ALL_PROXY", PROXY)
    assert (proxy_for("https://api.example"), proxy_for("http://api.example")) == ("http://secure.example:1", PROXY)


def test_a_proxy_without_a_scheme_is_an_http_proxy(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTP_PROXY", "proxy.example:3128")
    assert proxy_for("http://api.example") == PROXY


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("api.example", "http://api.example/v1", True),
        ("api.example", "http://api.example:8000/v1", True),
        ("api.example:8000", "http://api.example:8000/v1", True),
        (".example", "http://api.example/v1", True),
        ("other.example, example", "http://user:password@api.example/v1", True),
        ("*", "http://api.example/v1", True),
        ("other.example", "http://api.example/v1", False),
        ("user", "http://user:password@api.example/v1", False),
        ("", "http://api.example/v1", False),
    ],
)
def test_hosts_of_no_proxy_are_asked_directly(
    no_proxy: str, url: str, is_direct: bool, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("HTTP_PROXY", PROXY)
    environment.setenv("NO_PROXY", no_proxy)
    assert (proxy_for(url) is None) == is_direct


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("ALL_PROXY", "http://api.example"),
        ("ALL_PROXY", "https://api.example"),
        ("HTTP_PROXY", "http://api.example"),
        ("HTTPS_PROXY", "https://api.example"),
    ],
)
@pytest.mark.parametrize("proxy", ["socks5://user:secret@proxy:9", "socks5h://secret:9", "ftp://secret:9", "http://"])
def test_another_kind_of_proxy_is_refused_by_the_variable_s_name(
    variable: str, url: str, proxy: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(variable, proxy)
    with pytest.raises(UnsupportedProxy, match=f"^{variable} ") as refused:
        proxy_for(url)
    assert "secret" not in str(refused.value)
