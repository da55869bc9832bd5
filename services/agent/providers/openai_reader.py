"""Reading chat completions, streamed and whole, as OpenAI and the servers that speak its API send them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.agent.domain import ToolCall
from services.agent.providers import MAX_TOOL_CALLS, Chunk, Finish, ReportedUsage, Unseen
from services.agent.providers.json_text import dumps
from services.common.providers import finish_reasons
from services.common.providers.errors import ProviderUnavailable
from services.common.providers.usage import count
from services.kit.ids import new_id

# Where servers put what the model thinks.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(slots=True)
class _Call:
    """A tool call whose pieces are still coming."""

    index: int | str | None
    id: str
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class ChatCompletionReader:
    """Turns the objects of one answer into chunks."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._calls: list[_Call] = []
        self._reason = ""

    def read(self, document: Mapping[str, Any], *, is_whole: bool = False) -> list[Chunk]:
        """What one object brings. What it has in another shape than expected is skipped.

        `is_whole`: it is the whole completion, not a piece of a stream.
        """
        chunks: list[Chunk] = []
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and not choice.get("index"):
                self._read_choice(choice, is_whole, chunks)
        if isinstance(usage := document.get("usage"), dict):
            chunks.append(_usage(usage))
        return chunks

    def finish(self, *, is_whole: bool) -> Iterator[Chunk]:
        """The end. Raises ProviderUnavailable for an answer that was cut off."""
        if not self._reason and not is_whole:
            raise ProviderUnavailable(f"The answer of {self._provider} was cut off.")
        reason = finish_reasons.meaning(self._provider, self._reason or finish_reasons.STOP)
        if not self._reason:
            finish_reasons.log.info("no_finish_reason", provider=self._provider)
        for call in self._calls:
            arguments = "".join(call.arguments)
            if reason == finish_reasons.LENGTH and not _is_json(arguments):
                continue  # cut in the middle
            yield ToolCall(call.id or f"call_{new_id().hex}", call.name, arguments)
        yield Finish(reason)

    # Lists instead of generators: this runs for every token.

    def _read_choice(self, choice: Mapping[str, Any], is_whole: bool, chunks: list[Chunk]) -> None:
        delta = choice.get("delta")
        # A piece has a delta, a whole completion a message. Perplexity sends both in each.
        part = (choice.get("message") or delta) if is_whole else (delta or choice.get("message"))
        if isinstance(part, dict):
            self._read_part(part, chunks)
        if (reason := choice.get("finish_reason")) and isinstance(reason, str):
            self._reason = reason

    def _read_part(self, part: Mapping[str, Any], chunks: list[Chunk]) -> None:
        if content := part.get("content"):
            if isinstance(content, str):
                chunks.append(content)
            else:
                chunks.extend(_content(content))
            if len(part) == 1:
                return
        if (refusal := part.get("refusal")) and isinstance(refusal, str):
            chunks.append(refusal)
        for name in _THOUGHTS:
            if thought := part.get(name):
                chunks.append(Unseen(_size(thought)))
                break
        if isinstance(pieces := part.get("tool_calls"), list):
            for piece in pieces:
                if isinstance(piece, dict):
                    chunks.extend(self._read_call(piece.get("index"), piece.get("id"), piece.get("function")))
        if isinstance(old := part.get("function_call"), dict):
            chunks.extend(self._read_call(None, None, old))

    def _read_call(self, index: object, id: object, function: object) -> Iterator[Chunk]:
        """Pieces of a call share an index. Some servers leave it out, or number all calls 0: then a new id tells."""
        id = id if isinstance(id, str) else ""
        index = index if isinstance(index, int | str) else None
        function = function if isinstance(function, dict) else {}
        call = next((known for known in reversed(self._calls) if _continues(known, index, id)), None)
        if call is None:
            if len(self._calls) == MAX_TOOL_CALLS:
                return
            call = _Call(index, id)
            self._calls.append(call)
        call.id = call.id or id
        name = function.get("name")
        if isinstance(name, str) and name != call.name:  # Kimi repeats the name with each piece
            call.name += name
        arguments = function.get("arguments")
        if isinstance(arguments, dict | list):
            arguments = dumps(arguments)
        if isinstance(arguments, str) and arguments:
            call.arguments.append(arguments)
            yield Unseen(len(arguments.encode("utf-8", "surrogatepass")))
        elif isinstance(name, str):
            yield Unseen(len(name))


def _continues(call: _Call, index: int | str | None, id: str) -> bool:
    return (index is None or call.index is None or call.index == index) and (not id or not call.id or call.id == id)


def _content(content: object) -> Iterator[Chunk]:
    """Text, or a list of parts: reasoning models of Mistral and Databricks put thoughts beside the text."""
    if isinstance(content, str):
        if content:
            yield content
    elif isinstance(content, list):
        for part in content:
            if not isinstance(part, dict):
                yield from _content(part if isinstance(part, str) else "")
            elif part.get("type") in ("text", "output_text", None) and isinstance(part.get("text"), str):
                yield from _content(part["text"])
            else:
                yield Unseen(_size(part))


def _size(value: object) -> int:
    text = value if isinstance(value, str) else dumps(value)
    return len(text.encode("utf-8", "surrogatepass"))


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return False
    return True


def _usage(usage: Mapping[str, Any]) -> ReportedUsage:
    """xAI counts thinking in `total_tokens` alone: what it has beyond the prompt is output."""
    prompt, completion = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
    total = count(usage.get("total_tokens"))
    if total and prompt is not None and total > prompt + (completion or 0):
        completion = total - prompt
    return ReportedUsage(prompt, completion)
