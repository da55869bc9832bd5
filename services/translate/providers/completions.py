"""Reading a whole chat completion, as OpenAI and the servers that speak its API send it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.providers import finish_reasons
from services.common.providers.errors import ContentFiltered, ProviderBadResponse
from services.common.providers.json_document import parse_json
from services.common.providers.refusals import Refused, in_stream
from services.common.providers.usage import count
from services.translate.providers import CutOff


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote, and the counts that the provider reports."""

    content: str
    input_tokens: int | None
    output_tokens: int | None


def read_completion(provider: str, body: bytes) -> Completion:
    """The completion. Raises Refused for an error in its place, ProviderErrors for one that was cut off or filtered."""
    try:
        document = parse_json(body)
    except ValueError:
        raise ProviderBadResponse from None
    if not isinstance(document, Mapping):
        raise ProviderBadResponse
    choice = _first(document.get("choices"))
    if (refusal := in_stream(document) or in_stream(choice)) is not None:
        raise Refused(refusal)
    content = _content(provider, choice)
    usage = document.get("usage")
    return Completion(content, *_counts(usage if isinstance(usage, Mapping) else {}))


def _first(choices: object) -> Mapping[str, Any]:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}


def _content(provider: str, choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise ProviderBadResponse
    if message.get("refusal"):
        raise ContentFiltered
    reason = choice.get("finish_reason")
    match finish_reasons.meaning(provider, reason) if isinstance(reason, str) and reason else "":
        case finish_reasons.LENGTH:
            raise CutOff
        case finish_reasons.CONTENT_FILTER:
            raise ContentFiltered
    return _text(message.get("content"))


def _text(content: object) -> str:
    """Text, or a list of parts: some reasoning models put thoughts beside the text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS]
    return "".join(text for text in texts if isinstance(text, str))


_TEXT_PARTS = ("text", "output_text", None)


def _counts(usage: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Input and output. xAI counts thinking in `total_tokens` alone: what it has beyond the prompt is output."""
    prompt, output, total = (count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if total and prompt is not None and total > prompt + (output or 0):
        output = total - prompt
    return prompt, output
