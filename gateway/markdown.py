"""Markdown of strangers as HTML that can neither run nor load anything."""

from __future__ import annotations

import html
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

# Within these bounds the parser takes 0.3 s at most: each bracket makes it look through all that follows.
MAX_CHARACTERS = 20_000
MAX_BRACKETS = 1_000
MAX_REMEMBERED = 512
# Headings of a message stand below the page's own two.
OUTER_HEADINGS = 2
LEAST_HEADING = 6

TAGS = frozenset(
    "a blockquote br code del em h3 h4 h5 h6 hr li ol p pre s strong table tbody td th thead tr ul".split()  # noqa: SIM905
)
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "td": {"align"}, "th": {"align"}}
SCHEMES = frozenset({"http", "https", "mailto"})


@lru_cache(maxsize=MAX_REMEMBERED)
def to_html(markdown: str) -> str:
    """CommonMark with tables, as HTML. HTML in it is shown as it was written, an image is a link to it."""
    if len(markdown) > MAX_CHARACTERS or markdown.count("[") > MAX_BRACKETS:
        return as_written(markdown)
    return nh3.clean(
        _markdown.render(markdown),
        tags=set(TAGS),
        attributes=ATTRIBUTES,
        url_schemes=set(SCHEMES),
        link_rel="nofollow noopener noreferrer ugc",
    )


def as_written(text: str) -> str:
    """Text as HTML that shows each character of it."""
    return f'<p class="as-written">{html.escape(text)}</p>'


def _tame(state: StateCore) -> None:
    """Lower the headings, and say a cell's alignment without a style, which the page's policy forbids."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(LEAST_HEADING, int(token.tag[1:]) + OUTER_HEADINGS)}"
        style = token.attrs.pop("style", None)
        if isinstance(style, str):
            token.attrs["align"] = style.removeprefix("text-align:")


class _Renderer(RendererHTML):
    """The usual one, but for images."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        """A link: looking at a page must not tell the image's server who looks."""
        token = tokens[idx]
        source = html.escape(str(token.attrs.get("src", "")), quote=True)
        text = self.renderInlineAsText(token.children or [], options, env).strip() or "image"
        return f'<a href="{source}">[{html.escape(text)}]</a>'


def _make() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=_Renderer)
    made.enable(["table", "strikethrough"])
    made.core.ruler.push("tame", _tame)
    return made


_markdown = _make()
