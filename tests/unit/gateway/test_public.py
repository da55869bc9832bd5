"""What a public link shows, as JSON and as a page; and that the page can neither run nor load anything."""

import re
import time
from collections.abc import AsyncIterator
from html.parser import HTMLParser

import grpc
import httpx
import pytest
from backendai.chat.v1 import chat_pb2 as pb

from gateway.markdown import MAX_CHARACTERS, to_html
from gateway.pages import MAX_RENDERED_CHARACTERS, session_page
from gateway.server import Gateway
from services.kit.errors import NotFound
from tests.unit.gateway.conftest import FakeServices
from tests.unit.gateway.samples import NOON, NOON_TEXT

LINK = "7c0f6d3e-54a1-4b53-9df7-0a3f6d1c2b4e"
SHARED = f"/api/chats/shared/{LINK}/"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
GUARDS = {"x-robots-tag": "noindex", "referrer-policy": "no-referrer", "cache-control": "no-store", "vary": "Accept"}


@pytest.fixture
async def anyone(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Without a token."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway") as client:
        yield client


def conversation(*contents: str, name: str = "Paris") -> pb.GetPublicSessionResponse:
    """Question, answer, question, …"""
    roles = ("user", "assistant")
    return pb.GetPublicSessionResponse(
        name=name,
        created_at=NOON,
        messages=[
            pb.PublicMessage(role=roles[number % 2], content=content, created_at=NOON)
            for number, content in enumerate(contents)
        ],
    )


def guards(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers.get(name, "") for name in GUARDS}


async def test_anyone_reads_name_times_and_words_and_nothing_else(
    anyone: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["GetPublicSession"] = conversation("Capital?", "Paris.")
    shown = await anyone.get(SHARED)
    assert shown.status_code == 200
    assert shown.json() == {
        "name": "Paris",
        "created_at": NOON_TEXT,
        "messages": [
            {"role": "user", "content": "Capital?", "created_at": NOON_TEXT},
            {"role": "assistant", "content": "Paris.", "created_at": NOON_TEXT},
        ],
    }
    assert guards(shown) == GUARDS
    assert services.requests("GetPublicSession")[0].shareable_link_id == LINK


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic YTpi"}])
async def test_a_token_is_of_no_interest(
    anyone: httpx.AsyncClient, services: FakeServices, header: dict[str, str]
) -> None:
    services.answers["GetPublicSession"] = conversation(name="")
    shown = await anyone.get(SHARED, headers=header)
    assert (shown.status_code, shown.json()["name"]) == (200, None)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (BROWSER, "text/html; charset=utf-8"),
        ("text/html", "text/html; charset=utf-8"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html;q=0", "application/json"),
        ("text/*", "application/json"),
    ],
)
async def test_who_asks_for_a_page_gets_one(
    anyone: httpx.AsyncClient, services: FakeServices, accept: str, media_type: str
) -> None:
    services.answers["GetPublicSession"] = conversation("Hello")
    shown = await anyone.get(SHARED, headers={"Accept": accept})
    assert (shown.status_code, shown.headers["content-type"]) == (200, media_type)
    assert guards(shown) == GUARDS


@pytest.mark.parametrize("accept", [BROWSER, "application/json"])
async def test_unknown_and_malformed_links_get_the_same_404(
    anyone: httpx.AsyncClient, services: FakeServices, accept: str
) -> None:
    services.answers["GetPublicSession"] = NotFound()
    refusals = [
        await anyone.get(f"/api/chats/shared/{link}/", headers={"Accept": accept, "X-Request-Id": "same"})
        for link in (LINK, "0", "x" * 3_000, "%00", "a/b", "a%2Fb", LINK.replace("-", ""), "%F0%9F%92%A9")
    ]
    assert {refused.status_code for refused in refusals} == {404}
    assert len({refused.content for refused in refusals}) == 1
    assert len({tuple(sorted(refused.headers.items())) for refused in refusals}) == 1
    assert guards(refusals[0]) == GUARDS
    is_page = accept == BROWSER
    assert refusals[0].headers["content-type"].startswith("text/html" if is_page else "application/problem+json")


async def test_while_chat_is_away_people_are_told_to_try_again(
    anyone: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["GetPublicSession"] = grpc.StatusCode.UNAVAILABLE
    refused = await anyone.get(SHARED, headers={"Accept": BROWSER})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["content-type"] == "text/html; charset=utf-8"
    assert guards(refused) == GUARDS


# --- the page ---

HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(1)><svg/onload=alert(1)><iframe src=//evil.example>
<a href="javascript:alert(1)" onclick="alert(1)">a</a> <style>body{background:url(//evil.example)}</style>
[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>alert(1)</script>) [d](vbscript:x)
[e](java&#115;cript:alert(1)) [f](&#x6A;avascript:alert(1)) [g]( javascript:alert(1)) <javascript:alert(1)>
[h](java\nscript:alert(1)) [i](https://ok.example "t\\" onmouseover=\\"alert(1)") [j](https://ok.example/"onclick="x)
![beacon](https://evil.example/p.png) ![x](javascript:alert(1)) ![](data:image/svg+xml;base64,PHN2Zy8+)
[![i](https://evil.example/i.png)](https://ok.example) [ref]: https://evil.example/x "y"
`<b>` &lt;script&gt; \\<script> </div></article></main><script src=//evil.example/x.js></script>

    <script>alert(2)</script>

```html"><script>alert(3)</script>
<script>alert(4)</script>
```
|<script>|x|
|:-|-:|
|<img src=x>|y|
<!-- --><!DOCTYPE x><?php x ?><![CDATA[ <script> ]]>
"""


class Seen(HTMLParser):
    """The elements of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def seen(page: str) -> Seen:
    parser = Seen()
    parser.feed(page)
    return parser


HARMLESS = "article a br code del div em h1 h2 h3 h4 h5 h6 head header hr html li main meta ol p pre s strong style"
HARMLESS_TAGS = {*HARMLESS.split(), "body", "table", "tbody", "td", "th", "thead", "time", "title", "tr", "ul"}


@pytest.mark.parametrize("name", ["", "Paris", "</title><script>alert(1)</script>", '"><img src=x>'])
def test_nothing_hostile_becomes_an_element(name: str) -> None:
    page = seen(session_page(conversation(HOSTILE, HOSTILE, name=name)))
    assert {tag for tag, _ in page.elements} <= HARMLESS_TAGS
    for tag, attributes in page.elements:
        assert set(attributes) <= {
            "align",
            "charset",
            "class",
            "content",
            "datetime",
            "dir",
            "href",
            "lang",
            "name",
        } | {
            "rel",
            "start",
            "title",
        }, (tag, attributes)
    links = [attributes["href"] or "" for tag, attributes in page.elements if tag == "a"]
    assert links
    assert all(link.startswith("https://") for link in links), links


async def test_the_policy_lets_nothing_run_or_load_but_the_pages_own_style(
    anyone: httpx.AsyncClient, services: FakeServices
) -> None:
    services.answers["GetPublicSession"] = conversation(HOSTILE)
    shown = await anyone.get(SHARED, headers={"Accept": BROWSER})
    policy = shown.headers["content-security-policy"]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/]{43}='; base-uri 'none'; form-action 'none'; "
        r"frame-ancestors 'none'",
        policy,
    )
    assert shown.headers["x-content-type-options"] == "nosniff"


def test_the_style_loads_nothing() -> None:
    page = session_page(conversation())
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_an_image_is_a_link_that_says_what_it_shows() -> None:
    rendered = to_html("![a *map* & more](https://ok.example/m.png)")
    assert "<img" not in rendered
    assert '<a href="https://ok.example/m.png"' in rendered
    assert "[a map &amp; more]" in rendered


def test_markdown_is_readable() -> None:
    rendered = to_html("# Title\nline\nnext\n\n```py\nx < 1\n```\n\n| a |\n|-:|\n| 1 |\n\n3. three\n\n~~no~~ **yes**")
    for part in (
        "<h3>Title</h3>",
        "line<br>",
        "<pre><code>x &lt; 1\n</code></pre>",
        '<td align="right">1</td>',
        '<ol start="3">',
        "<s>no</s>",
        "<strong>yes</strong>",
    ):
        assert part in rendered


@pytest.mark.parametrize(
    "bait", ["[", "![", "> ", "*a ", "_a__", "a|", "x\n", "- ", "1. ", "`", "[a](", "<a ", "&", "~~"]
)
def test_no_message_takes_long_to_render(bait: str) -> None:
    started_at = time.thread_time()
    to_html(bait * (MAX_CHARACTERS // len(bait)))
    assert time.thread_time() - started_at < 2


def test_what_is_too_long_to_render_is_shown_as_it_was_written() -> None:
    long = "**a** <b>\n" * (MAX_RENDERED_CHARACTERS // 10)
    page = session_page(conversation("**first**", long, "**last**"))
    assert "<strong>first</strong>" in page
    assert "**a** &lt;b&gt;" in page
    assert "**last**" in page
