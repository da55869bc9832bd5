"""Reading Gemini's answers, streamed and whole."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from services.agent.domain import ToolCall
from services.agent.providers import MAX_TOOL_CALLS, Chunk, Finish, ReportedUsage, Unseen
from services.agent.providers.json_text import dumps
from services.common.providers import finish_reasons
from services.common.providers.errors import ContentFiltered, ProviderUnavailable
from services.common.providers.usage import count
from services.kit.ids import new_id


class GeminiReader:
    """Turns the objects of one answer into chunks."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._reason = ""
        self._calls = 0

    def read(self, document: Mapping[str, Any]) -> Iterator[Chunk]:
        """What one object brings. What it has in another shape than expected is skipped."""
        feedback = document.get("promptFeedback")
        if isinstance(feedback, dict) and feedback.get("blockReason"):
            raise ContentFiltered
        candidates = document.get("candidates")
        for candidate in candidates if isinstance(candidates, list) else ():
            if isinstance(candidate, dict) and not candidate.get("index"):
                yield from self._read_candidate(candidate)
        if isinstance(usage := document.get("usageMetadata"), dict):
            yield _usage(usage)

    def finish(self, *, is_whole: bool) -> Iterator[Chunk]:
        """The end. Raises ProviderUnavailable for an answer that was cut off."""
        if not self._reason and not is_whole:
            raise ProviderUnavailable(f"The answer of {self._provider} was cut off.")
        reason = finish_reasons.meaning(self._provider, self._reason or finish_reasons.STOP)
        yield Finish(finish_reasons.TOOL_CALLS if self._calls and reason == finish_reasons.STOP else reason)

    def _read_candidate(self, candidate: Mapping[str, Any]) -> Iterator[Chunk]:
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                yield from self._read_part(part)
        if isinstance(reason := candidate.get("finishReason"), str) and reason:
            self._reason = reason

    def _read_part(self, part: Mapping[str, Any]) -> Iterator[Chunk]:
        text = part.get("text")
        if isinstance(text, str) and text:
            yield Unseen(len(text.encode("utf-8", "surrogatepass"))) if part.get("thought") else text
        call = part.get("functionCall")
        if isinstance(call, dict) and self._calls < MAX_TOOL_CALLS:
            self._calls += 1
            # Without a name it is a piece of a call, sent only to those who ask for pieces: kept as the SDK reads it.
            name = call["name"] if isinstance(call.get("name"), str) else ""
            arguments = call.get("args")
            text = dumps(arguments) if isinstance(arguments, dict) else "{}"
            id = call.get("id")
            yield Unseen(len(name) + len(text))
            yield ToolCall(
                id=id if isinstance(id, str) and id else f"call_{new_id().hex}",
                name=name,
                arguments=text,
                signature=_signature(part.get("thoughtSignature")),
            )


def _signature(value: object) -> str:
    """The signature as base64, in the alphabet in which it goes back; nothing if it is none."""
    if not isinstance(value, str):
        return ""
    try:
        return base64.b64encode(base64.urlsafe_b64decode(value.replace("+", "-").replace("/", "_"))).decode()
    except (binascii.Error, ValueError):
        return ""


def _usage(usage: Mapping[str, Any]) -> ReportedUsage:
    """Thinking is counted apart from the answer, and paid for like it; so are the results of Gemini's own tools."""
    prompt = count(usage.get("promptTokenCount"))
    answer = count(usage.get("candidatesTokenCount"))
    thoughts = count(usage.get("thoughtsTokenCount")) or 0
    if prompt is not None:
        prompt += count(usage.get("toolUsePromptTokenCount")) or 0
    # Until the first text there are thoughts alone.
    output = (answer or 0) + thoughts if answer is not None or thoughts else None
    return ReportedUsage(prompt, output)
