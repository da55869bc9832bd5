"""One run: what a framework is given to work with, and what the worker sees of it while it works."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from enum import Enum, auto

import structlog

from services.agent.domain import (
    MAX_WARNINGS,
    PARAMETER_DROPPED,
    Completed,
    Message,
    Step,
    TaskWarning,
    ToolCall,
    Turn,
    Usage,
    input_bytes,
    output_limit,
)
from services.agent.events import Events
from services.agent.metrics import FIRST_TOKEN_SECONDS
from services.agent.providers import Chunk, Dropped, Finish, ModelCall, Provider, ReportedUsage, Unseen
from services.agent.tools import Tools
from services.common.providers.calls import provider_call
from services.common.providers.errors import ContentFiltered, ProviderAuthFailed, ProviderBadResponse, ProviderError
from services.common.providers.finish_reasons import CONTENT_FILTER, LENGTH, STOP, TOOL_CALLS
from services.common.providers.retries import Retries
from services.kit.logs import where
from services.kit.text import replace_unstorable
from services.kit.tokens import estimate_tokens

log = structlog.get_logger()

# Why an answer ends whose provider writes on beyond what the hold buys.
CREDITS = "credits"
# No tokenizer packs more into its tokens over a whole answer: more text than this is more than the output limit.
MAX_BYTES_PER_TOKEN = 16
MIN_CUT_BYTES = 2_048

KeepStep = Callable[[Turn, Step], Awaitable[None]]


class Stop(Enum):
    """Why a run was stopped from outside."""

    CANCELLED = auto()
    LOST = auto()


class Reply:
    """What has come so far of a model call."""

    def __init__(self, call: ModelCall) -> None:
        self._call = call
        self._pieces: list[str] = []
        self._blanks: list[str] = []  # at the start: they are no answer until a word comes
        self._half = ""  # of a surrogate pair, whose other half comes with the next piece
        self._reported = ReportedUsage(None, None)
        self._written_bytes = 0
        self._bytes_since_report = 0
        self._max_bytes = max(MIN_CUT_BYTES, MAX_BYTES_PER_TOKEN * call.output_tokens)
        self._tool_calls: list[ToolCall] = []
        self.finish_reason = ""

    @property
    def text(self) -> str:
        """What has been shown."""
        return "".join(self._pieces)

    @property
    def visible(self) -> bool:
        """True if anything has been shown: then the call can't be tried again."""
        return bool(self._pieces)

    @property
    def is_empty(self) -> bool:
        """True if the model has neither written nor called anything. An answer cut by its limit says that much."""
        return not self._pieces and not self._tool_calls and self.finish_reason not in (LENGTH, CREDITS)

    @property
    def usage(self) -> Usage:
        """As reported; what the report lacks, or does not cover yet, is estimated from bytes."""
        input_tokens = self._reported.input_tokens
        if input_tokens is None:
            input_tokens = estimate_tokens(input_bytes(self._call.settings, self._call.messages))
        is_estimated = self._reported.input_tokens is None or self._bytes_since_report > 0
        return Usage(input_tokens, self._output_tokens, estimated=is_estimated)

    @property
    def _output_tokens(self) -> int:
        return (self._reported.output_tokens or 0) + estimate_tokens(self._bytes_since_report)

    @property
    def is_beyond_limit(self) -> bool:
        """True if the provider ignores the output limit, by what it has written. What it reports may be absurd."""
        return self._written_bytes > self._max_bytes

    def show(self, piece: str) -> str:
        """Add a piece of text and return what can be shown of it now."""
        if piece.isascii():
            self._count(len(piece))
            if self._pieces and not self._half and "\0" not in piece:  # nearly every token
                self._pieces.append(piece)
                return piece
        else:
            self._count(len(piece.encode("utf-8", "surrogatepass")))
        text, self._half = self._half + piece, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return self._add(text)

    def show_rest(self) -> str:
        """Return what waited for more text, now that none comes."""
        text, self._half = self._half, ""
        return self._add(text)

    def _add(self, text: str) -> str:
        text = replace_unstorable(text)
        if not self._pieces:
            if not text.strip():
                self._blanks.append(text)
                return ""
            text = "".join([*self._blanks, text])
        if text:
            self._pieces.append(text)
        return text

    def take(self, chunk: Unseen | ToolCall | ReportedUsage | Finish) -> None:
        """Add what is not shown."""
        match chunk:
            case ReportedUsage():
                self._report(chunk)
            case Unseen():
                self._count(chunk.size_bytes)
            case ToolCall():
                id, name, arguments = map(replace_unstorable, (chunk.id, chunk.name, chunk.arguments))
                self._tool_calls.append(replace(chunk, id=id, name=name, arguments=arguments))
            case Finish():
                self.finish_reason = chunk.reason

    def cut(self) -> None:
        """End the answer here: its credits are used up."""
        self.finish_reason = CREDITS
        self._tool_calls.clear()

    def _report(self, report: ReportedUsage) -> None:
        """Take a report over. Zero is no report: a call has input, and an answer output."""
        self._reported = ReportedUsage(
            report.input_tokens or self._reported.input_tokens, report.output_tokens or self._reported.output_tokens
        )
        if report.output_tokens:
            self._bytes_since_report = 0

    def _count(self, size: int) -> None:
        self._written_bytes += size
        self._bytes_since_report += size

    @property
    def message(self) -> Message:
        """The whole, as the conversation goes on with it."""
        return Message("assistant", self.text, tuple(self._tool_calls))

    @property
    def answer(self) -> Completed:
        """The whole, as the end of the run."""
        return Completed(self.text, STOP if self.finish_reason == TOOL_CALLS else self.finish_reason)


class Run:
    """A turn under way. Frameworks ask the model and use tools through it, so events, usage and limits are the same."""

    def __init__(
        self,
        turn: Turn,
        providers: Mapping[str, Provider],
        tools: Tools,
        events: Events,
        keep_step: KeepStep,
        retries: Retries,
    ) -> None:
        self.turn, self.events = turn, events
        self.stopped: Stop | None = None
        self._provider = providers.get(turn.settings.provider)
        self._tools, self._keep_step, self._retries = tools, keep_step, retries
        self._warnings: list[TaskWarning] = []
        self._steps = len(turn.steps)
        self._spent = turn.spent  # on calls that are over
        self._spent_on_step = Usage()  # since the last kept step
        self._reply: Reply | None = None  # of the call under way, or of the last one
        self._asking = False
        self._scope: asyncio.Timeout | None = None
        self._heeded: Collection[Stop] = ()

    # --- for frameworks ---

    async def ask(self, messages: Sequence[Message]) -> Reply:
        """The model's whole answer to these messages. Retries what may be retried."""
        size = input_bytes(self.turn.settings, messages)
        limit = output_limit(self.turn, self._spent, next_input_tokens=estimate_tokens(size))
        call = ModelCall(self.turn.settings, messages, limit, self._tools.all)
        return await self._retries.run(lambda: self._stream(call))

    async def use_tools(self, message: Message) -> list[Message]:
        """Call the tools that a message asks for, all at once, and keep the round: a later attempt continues after it.

        Returns the messages that the conversation goes on with: the one that asked, and the results.
        """
        for call in message.tool_calls:
            await self.events.tool_call(call)
        results = await asyncio.gather(*(self._tools.call(call) for call in message.tool_calls))
        for result in results:
            await self.events.tool_result(result)
        self._steps += 1
        messages = [message, *results]
        await self._keep_step(self.turn, Step(self._steps, tuple(messages), self._spent_on_step))
        self._spent_on_step, self._reply = Usage(), None
        return messages

    def warn(self, warning: TaskWarning) -> None:
        """Add a warning to the task and log it. A repeated one, and one above MAX_WARNINGS, is ignored."""
        warning = warning.within_limits()
        if warning in self._warnings or len(self._warnings) == MAX_WARNINGS:
            return
        self._warnings.append(warning)
        log.warning("task_warning", task_id=self.turn.task_id, code=warning.code, detail=warning.detail)

    # --- for the worker ---

    @property
    def warnings(self) -> Sequence[TaskWarning]:
        """The warnings of this attempt, in order."""
        return tuple(self._warnings)

    @property
    def text(self) -> str:
        """The answer so far, without the steps that are kept."""
        return self._reply.text if self._reply is not None else ""

    @property
    def usage(self) -> Usage:
        """What the whole run has consumed so far, earlier attempts' kept steps included."""
        return self._spent + self._reply.usage if self._asking and self._reply is not None else self._spent

    async def start_over(self) -> None:
        """Void what an earlier attempt has told, then tell again what is kept of it."""
        if self.turn.attempt == 1:
            return
        await self.events.reset()
        for message in (message for step in self.turn.steps for message in step.messages):
            if message.role == "tool":
                await self.events.tool_result(message)
            elif message.content:
                self.events.delta(message.content)
            for call in message.tool_calls:
                await self.events.tool_call(call)

    @asynccontextmanager
    async def within(self, seconds: float, *, heeding: Collection[Stop]) -> AsyncIterator[None]:
        """The scope to work in. It ends with a TimeoutError after that time, or once the run is stopped for a heeded
        reason: what it waits for is cancelled, and so the provider's connection closed."""
        self._heeded = heeding
        async with asyncio.timeout(0 if self.stopped in heeding else seconds) as scope:
            self._scope = scope
            try:
                yield
            finally:
                self._scope = None

    def stop(self, why: Stop) -> None:
        """Stop the run from outside. A lost lease outdoes a cancel."""
        if self.stopped is not Stop.LOST:
            self.stopped = why
        if self._scope is not None and why in self._heeded and not self._scope.expired():
            self._scope.reschedule(0)

    # --- inside ---

    async def _stream(self, call: ModelCall) -> Reply:
        """One try of a model call, shown as it comes."""
        self._reply = reply = Reply(call)
        self._asking = True
        try:
            with provider_call(call.settings.provider, call.settings.model, "chat") as span:
                if self._provider is None:
                    raise ProviderAuthFailed(f"This agent has no key for {call.settings.provider}.")
                await self._show(self._provider.stream(call), reply)
                span.set_attribute("gen_ai.usage.input_tokens", reply.usage.input_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", reply.usage.output_tokens)
        except ProviderError as error:
            self._asking = False
            raise (error.final() if reply.visible else error) from None
        except Exception as error:
            # No answer of a provider may end a run with an error of ours, whatever its bytes are.
            self._asking = False
            log.error("provider_answer_not_read", task_id=self.turn.task_id, **where(error))
            raise ProviderBadResponse from None
        self._asking = False
        self._spent += reply.usage
        self._spent_on_step += reply.usage
        return reply

    async def _show(self, stream: AsyncGenerator[Chunk, None], reply: Reply) -> None:
        """Take what the provider sends, and show its text as it comes."""
        asked_at, settings, was_visible = time.perf_counter(), self.turn.settings, False
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, str):
                    if text := reply.show(chunk):
                        self.events.delta(text)
                        if not was_visible:
                            was_visible = True
                            waited = time.perf_counter() - asked_at
                            FIRST_TOKEN_SECONDS.labels(settings.provider, settings.model).observe(waited)
                elif isinstance(chunk, Dropped):
                    self.warn(TaskWarning(PARAMETER_DROPPED, chunk.name))
                    continue
                else:
                    reply.take(chunk)
                if reply.is_beyond_limit and not reply.finish_reason:
                    log.warning("output_limit_ignored", task_id=self.turn.task_id, provider=settings.provider)
                    reply.cut()
                    break
        if text := reply.show_rest():
            self.events.delta(text)
        if reply.finish_reason == CONTENT_FILTER:
            raise ContentFiltered
        if reply.is_empty:
            raise ProviderBadResponse("The provider's answer was empty.", retryable=True)
