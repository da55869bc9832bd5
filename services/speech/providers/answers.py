"""Reading a transcription server's answer: OpenAI's JSON objects, and the plain text and simpler JSON of others."""

from collections.abc import Mapping
from typing import Any

from services.common.providers.errors import ProviderBadResponse
from services.common.providers.json_document import parse_json
from services.common.providers.refusals import Refusal, in_stream
from services.kit.text import replace_unstorable
from services.speech.domain import Transcript
from services.speech.languages import heard_language

MAX_LANGUAGE_CHARACTERS = 64
# A web page, JSON that was cut off, a stream of events.
_NO_TEXT = ("<", "{", "[{", "[[", "data:", "event:")


def read_transcript(body: bytes, *, is_text: bool) -> Transcript | Refusal:
    """The transcript, or the refusal that came with a status of 200. Raises ProviderBadResponse for anything else.

    A `text` is the transcript. Without one it is what the `segments` say, a JSON string, or the body itself if that is
    no JSON. Silence is an empty text; an empty body is silence only where text was asked for.
    """
    try:
        document = parse_json(body)
    except ValueError:
        return Transcript(_plain(body, may_be_empty=is_text), "")
    if is_text and not isinstance(document, str | Mapping):
        return Transcript(_plain(body, may_be_empty=True), "")  # spoken words can be JSON too: 42
    if isinstance(document, str):
        return Transcript(_clean(document), "")
    if not isinstance(document, Mapping):
        raise ProviderBadResponse
    if (refusal := in_stream(document)) is not None:
        return refusal
    text = document.get("text")
    if not isinstance(text, str):
        text = _joined(document.get("segments"))
    return Transcript(_clean(text), _language(document))


def _plain(body: bytes, *, may_be_empty: bool) -> str:
    text = _clean(body.decode("utf-8", "replace").removeprefix("\ufeff"))
    if text.startswith(_NO_TEXT) or not (text or may_be_empty):
        raise ProviderBadResponse
    return text


def _joined(segments: object) -> str:
    texts = [one.get("text") for one in segments if isinstance(one, Mapping)] if isinstance(segments, list) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ProviderBadResponse
    return "".join(map(str, texts))


def _language(document: Mapping[str, Any]) -> str:
    """The language that was heard: `language` in a verbose answer, the first of `languages` in a plain one."""
    languages = document.get("languages")
    entries = [document.get("language"), *(languages if isinstance(languages, list) else ())]
    for entry in entries:
        said = entry.get("code") if isinstance(entry, Mapping) else entry
        if isinstance(said, str) and said:
            return heard_language(said[:MAX_LANGUAGE_CHARACTERS])
    return ""


def _clean(text: str) -> str:
    return replace_unstorable(text).strip()
