"""Prints docs/grpc.md: `python -m docs.grpc_document`.

The chapters are in grpc.template.md. A line `<!-- name -->` there stands for what is made of the .proto files, or for a
file beside it that is included.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from docs.contracts import Comment, Enum, Error, Field, File, Message, Method, Service, read

HERE = Path(__file__).parent
TEMPLATE = HERE / "grpc.template.md"
PLACE = re.compile(r"^<!-- ([a-z_.]+) -->$", re.MULTILINE)
LINK = re.compile(r"\]\(#([^)]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

REPEATED = {
    "NO_SIDE_EFFECTS": "changes nothing, may be repeated",
    "IDEMPOTENT": "may be repeated",
    "": "not for a retry policy, see Repeat",
}
RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
MORE_SERVICE_CONFIG = {
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
}


def render(files: Sequence[File]) -> str:
    """The document; SystemExit when a link in it leads nowhere, or to two places."""
    made = {
        "callers": lambda: _callers(files),
        "service_config": lambda: service_config(files),
        "conventions": lambda: _said(Comment(files[0].comment.paragraphs[2:])),
        "reference": lambda: _lines(_reference(files)),
        "reasons": lambda: _lines(line for enum in _enums(files) if enum.is_reasons for line in _enum(enum)),
        "types": lambda: _lines(_types(files)),
    }

    def fill(place: re.Match[str]) -> str:
        name = place[1]
        return made[name]() if name in made else (HERE / name).read_text().strip()

    document = PLACE.sub(fill, TEMPLATE.read_text())
    _check_links(document)
    return document


def service_config(files: Sequence[File]) -> str:
    """The gRPC service config that repeats what may be repeated. One method a line."""
    names = [
        json.dumps({"service": method.service, "method": method.name})
        for method in _methods(files)
        if method.idempotency
    ]
    listed = ",\n        ".join(names)
    more = json.dumps(MORE_SERVICE_CONFIG, indent=2).removeprefix("{\n").removesuffix("\n}")
    return (
        '{\n  "methodConfig": [\n    {\n      "name": [\n        '
        f'{listed}\n      ],\n      "retryPolicy": {json.dumps(RETRY_POLICY)}\n    }}\n  ],\n{more}\n}}'
    )


def _services(files: Sequence[File]) -> Iterator[Service]:
    return (service for file in files for service in file.services)


def _methods(files: Sequence[File]) -> Iterator[Method]:
    return (method for service in _services(files) for method in service.methods)


def _enums(files: Sequence[File]) -> Iterator[Enum]:
    return (enum for file in files for enum in file.enums)


def _messages(files: Sequence[File]) -> Iterator[Message]:
    return (message for file in files for message in file.messages)


# --- tables ---


def _callers(files: Sequence[File]) -> str:
    """Who may call what, by caller."""
    names = dict.fromkeys(caller for method in _methods(files) for caller in method.callers)
    rows = []
    for caller in names:
        for service in _services(files):
            if mine := [method for method in service.methods if caller in method.callers]:
                everything = len(mine) == len(service.methods)
                listed = "every method" if everything else ", ".join(_link(one.name, _anchor(one)) for one in mine)
                rows.append((caller, _link(service.name, service.name.lower()), listed))
    return _table(("caller", "service", "methods"), rows)


def _errors(errors: Iterable[Error]) -> str:
    return _table(("code", "reason", "when"), [(error.code, f"`{error.reason}`", error.when) for error in errors])


def _fields(message: Message, known: frozenset[str]) -> str:
    def kind(field: Field) -> str:
        name = field.type_name.rpartition(".")[2]
        return field.type.replace(name, _link(name, name.lower())) if name and field.type_name in known else field.type

    def said(field: Field) -> str:
        return f"{field.comment.summary} One of `{field.one_of}`." if field.one_of else field.comment.summary

    return _table(("field", "type", "what"), [(f"`{one.name}`", kind(one), said(one)) for one in message.fields])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    top, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join((top, "|---" * len(head) + "|", *rest))


# --- chapters ---


def _reference(files: Sequence[File]) -> Iterator[str]:
    messages = {message.full_name: message for message in _messages(files)}
    known = _known(files)
    for service in _services(files):
        yield f"### {service.name}"
        yield f"`{service.full_name}`"
        yield _said(service.comment)
        yield "Errors of every method:"
        yield _errors(service.errors)
        for method in service.methods:
            yield from _method(service, method, messages, known)


def _method(service: Service, method: Method, messages: dict[str, Message], known: frozenset[str]) -> Iterator[str]:
    yield f"#### {service.name}.{method.name}"
    yield f"For {', '.join(method.callers)}; {REPEATED[method.idempotency]}."
    yield _said(method.comment)
    for word, name, is_stream in (("Request", method.request, method.is_stream), ("Response", method.response, False)):
        message = messages[name]
        sent = f"a stream of `{message.name}`" if is_stream else f"`{message.name}`"
        if message.fields:
            yield f"**{word}**, {sent}: {_lowered(message.comment.summary)}"
            yield _fields(message, known)
        else:
            yield f"**{word}**, {sent}: empty."
    if method.errors:
        yield f"**Errors**, besides those of [every method](#{service.name.lower()}):"
        yield _errors(method.errors)


def _types(files: Sequence[File]) -> Iterator[str]:
    known = _known(files)
    for file in files:
        for message in file.messages:
            if message.full_name in known:
                yield f"### {message.name}"
                yield f"`{message.full_name}`: {_lowered(message.comment.summary)}"
                if message.fields:
                    yield _fields(message, known)
        for enum in file.enums:
            if not enum.is_reasons:
                yield from _enum(enum)


def _enum(enum: Enum) -> Iterator[str]:
    """Reasons are listed as they travel, the values of other enums as they are written."""
    yield f"### {enum.name}"
    yield _said(enum.comment)
    if enum.is_reasons:
        told = zip(enum.reasons, enum.values[1:], strict=True)
        yield _table(("reason", "what"), [(f"`{reason}`", value.comment.summary) for reason, value in told])
    else:
        yield _table(("value", "what"), [(f"`{value.name}`", value.comment.summary) for value in enum.values])


def _known(files: Sequence[File]) -> frozenset[str]:
    """What has a heading of its own: all but the messages that are told with their method."""
    told = {name for method in _methods(files) for name in (method.request, method.response)}
    messages = {message.full_name for message in _messages(files)} - told
    return frozenset(messages | {f"{file.package}.{enum.name}" for file in files for enum in file.enums})


# --- Markdown ---


def _said(comment: Comment) -> str:
    """A comment's paragraphs; items of a list stay together, and the words that begin a paragraph stand out."""
    said = ""
    for paragraph in comment.paragraphs:
        between = "\n" if paragraph.startswith("- ") and said.rpartition("\n")[2].startswith("- ") else "\n\n"
        said += between + re.sub(r"^(Repeat|Deadline|Order):", r"**\1:**", paragraph)
    return said.strip()


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _lines(blocks: Iterable[str]) -> str:
    return "\n\n".join(blocks)


def _link(text: str, anchor: str) -> str:
    return f"[{text}](#{anchor})"


def _anchor(method: Method) -> str:
    return _slug(f"{method.service.rpartition('.')[2]}.{method.name}")


def _slug(heading: str) -> str:
    """What a heading is linked by, as GitHub and its like make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _check_links(document: str) -> None:
    text = FENCED.sub("", document)
    headings = [_slug(heading) for heading in HEADING.findall(text)]
    wrong = {anchor for anchor in LINK.findall(text) if headings.count(anchor) != 1}
    if wrong:
        raise SystemExit(f"Links that lead to no heading, or to two: {', '.join(sorted(wrong))}.")


if __name__ == "__main__":
    sys.stdout.write(render(read()))
