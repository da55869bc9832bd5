"""Pages for people: a conversation behind a public link, and what is told when there is none."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files

from backendai.chat.v1 import chat_pb2 as pb
from fastapi import Response
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.answers import moment
from gateway.markdown import as_written, to_html
from gateway.problems import Problem

MEDIA_TYPE = "text/html"
STYLE = files("gateway").joinpath("pages.css").read_text("utf-8")
# Nothing runs and nothing is loaded, from wherever; the one style is the page's own.
CSP = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# What is longer is shown as it was written, from there on: rendering takes a second for every 100,000 characters.
MAX_RENDERED_CHARACTERS = 200_000
SPEAKERS = {"user": "User", "assistant": "Assistant"}


def session_page(session: pb.GetPublicSessionResponse) -> str:
    """A conversation. Takes its time: not for the event loop."""
    title = html.escape(session.name or "Shared conversation")
    messages = "".join(_messages(session.messages)) or "<p>Nothing has been said here yet.</p>"
    return _page(title, f"<header><h1>{title}</h1>{_time(session.created_at)}</header>{messages}")


def _messages(messages: Iterable[pb.PublicMessage]) -> Iterable[str]:
    left = MAX_RENDERED_CHARACTERS
    for message in messages:
        left -= len(message.content)
        content = to_html(message.content) if left >= 0 else as_written(message.content)
        yield (
            f'<article class="{html.escape(message.role, quote=True)}">'
            f"<header><h2>{SPEAKERS.get(message.role, 'Message')}</h2>{_time(message.created_at)}</header>"
            f'<div class="content" dir="auto">{content}</div></article>'
        )


def problem_page(problem: Problem) -> str:
    """Why there is nothing to see."""
    if problem.status == HTTPStatus.NOT_FOUND:
        title, detail = "Nothing here", "This link leads nowhere. It may have been switched off."
    else:
        title, detail = HTTPStatus(problem.status).phrase, problem.detail
    return _page(html.escape(title), f"<header><h1>{html.escape(title)}</h1></header><p>{html.escape(detail)}</p>")


def page_response(page: str, status: int, headers: dict[str, str]) -> Response:
    """A page as an answer."""
    return Response(page, status, {**headers, "Content-Security-Policy": CSP}, MEDIA_TYPE)


def _time(value: Timestamp) -> str:
    text = moment(value)
    return f'<time datetime="{text}">{text[:10]} {text[11:16]} UTC</time>'


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="robots" content="noindex"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>"
    )
