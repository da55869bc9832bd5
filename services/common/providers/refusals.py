"""What a provider's refusal means: one table for the agent, speech and translate. docs/providers.md shows it.

A refusal is an HTTP status of 400 or more, or an error object inside an answer that began with 200.
"""

import math
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from services.common.providers.errors import (
    ContentFiltered,
    ContextTooLong,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderError,
    ProviderNoMoney,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)

MAX_BODY_BYTES = 1024 * 1024
MAX_RETRY_AFTER_SECONDS = 86_400.0
# What is matched against the table is bounded. Some vendors write whole sentences into codes.
MAX_CODES = 64
MAX_CODE_CHARACTERS = 512
# Codes are passed on to users, sentences are not: they may quote the conversation or the key.
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,63}(\[\d{1,4}\][A-Za-z0-9_.]{0,40})?")
_STATUS = re.compile(r"[45][0-9]{2}")
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the provider said instead of an answer. `message` is matched against the table and never passed on."""

    status: int
    codes: tuple[str, ...] = ()
    message: str = ""
    params: tuple[str, ...] = ()
    """The request's fields that the provider names in a field of its own, outermost names only."""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_html: bool = False

    @property
    def text(self) -> str:
        """The message and the codes, for what vendors put into either."""
        return "\n".join([self.message, *self.codes])


class Refused(Exception):
    """The provider answered with a refusal. Raised inside a provider's client, which tries again or maps it."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table. It applies if the status fits and, where codes or wording are given, one of them is found."""

    meaning: str
    error: type[ProviderError]
    statuses: Collection[int] = ()
    codes: frozenset[str] = frozenset()
    wording: re.Pattern[str] | None = None
    html: bool = False
    examples: tuple[str, ...] = ()
    """Words that the wording finds, for the documentation."""
    retryable: bool | None = None
    """None: as the error's class says."""

    def applies(self, refusal: Refusal) -> bool:
        """True if this row is about the refusal."""
        if self.statuses and refusal.status not in self.statuses:
            return False
        if self.html:
            return refusal.is_html
        if not self.codes and self.wording is None:
            return True
        if not self.codes.isdisjoint(refusal.codes):
            return True
        return self.wording is not None and self.wording.search(refusal.text) is not None


def _any_of(*patterns: str) -> re.Pattern[str]:
    """One pattern. Its repetitions must be bounded: a message without spaces would be searched in quadratic time."""
    return re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL)


TOKENS_PER_MINUTE = _any_of(r"tokens per min", r"\bTPM\b", r"\bper-minute token")

# The first row that applies decides.
RULES: tuple[Rule, ...] = (
    Rule("a web page of a proxy in between", ProviderUnavailable, statuses=(403, 407), html=True),
    Rule(
        "the operator's account at the provider has no money",
        ProviderNoMoney,
        codes=frozenset(
            {
                "Arrearage",
                "exceeded_current_quota_error",
                "insufficient_quota",
                "insufficient_balance",
                "insufficient_credits",
                "billing_hard_limit_reached",
                "billing_not_active",
                "billing_error",
            }
        ),
        wording=_any_of(
            r"credit balance is too low",
            r"insufficient (account )?(balance|credits?|funds)|balance is insufficient|余额不足",
            r"(requires|need) more credits|requires billing",
            r"(out of|used all available|not have any|n't have any|not enough|no) credits",
            r"credits (are|have been|is) (depleted|exhausted|used up)|credit limit exceeded",
            r"reached your specified (api )?usage limits",
            r"make sure your account is in good standing",
            r"billing hard limit",
            r"account is not active, please check your billing",
            r"exceeded your current balance",
            r"spending limit",
        ),
        examples=("credit balance is too low", "insufficient balance", "used all available credits"),
    ),
    Rule("the operator's account at the provider has no money", ProviderNoMoney, statuses=(402,)),
    Rule(
        "one request of that size needs more tokens per minute than the account has",
        ProviderRateLimited,
        statuses=(413,),
        wording=TOKENS_PER_MINUTE,
        examples=("tokens per minute (TPM)",),
        retryable=False,
    ),
    Rule(
        "too many tokens per minute",
        ProviderRateLimited,
        statuses=(429,),
        wording=TOKENS_PER_MINUTE,
        examples=("tokens per minute (TPM)",),
    ),
    Rule(
        "moderation",
        ContentFiltered,
        codes=frozenset(
            {
                "content_policy_violation",
                "content_filter",
                "content_filtered",
                "content_filter_error",
                "contentFilter",
                "BLOCKLIST",
                "PROHIBITED_CONTENT",
                "RECITATION",
                "SAFETY",
                "data_inspection_failed",
                "DataInspectionFailed",
                "invalid_prompt",
                "moderation_blocked",
                "moderation_error",
                "ResponsibleAIPolicyViolation",
                "safety_check_failed",
                "SAFETY_CHECK_TYPE_BIO",
                "SAFETY_CHECK_TYPE_CSAM",
            }
        ),
        wording=_any_of(
            r"flagged as potentially violating",
            r"(input|prompt|request|content|message)s? (was|were|is|has been|have been) flagged",
            r"\bflagged (by|for|as)\b",
            r"requires moderation",
            r"content exists risk",
            r"content[ -]filter(ing|ed)?\b(?! (is|are) not supported)",
            r"content management policy",
            r"(safety|moderation) system",
            r"violat\w{1,8} (of )?(\S{1,60} ){0,4}(usage|content|safety|use) (polic|guideline)",
            r"inappropriate content|sensitive (content|information|words)|SensitiveContent|new_sensitive|敏感",
            r"considered high risk|\bguardrail",
            r"(content|prompt|response|output|input) (was|is|has been) blocked",
            r"blocked (by|for|due to) (\S{1,60} ){0,3}(safety|moderation|policy|prohibited)",
            r"failed (the )?safety check",
        ),
        examples=("flagged as potentially violating", "Content Exists Risk", "blocked by content filtering policy"),
    ),
    Rule(
        "the conversation is too long",
        ContextTooLong,
        statuses=(400, 404, 413, 422, 500),
        codes=frozenset(
            {
                "context_length_exceeded",
                "context_window_exceeded",
                "exceed_context_size_error",
                "model_max_prompt_tokens_exceeded",
                "prompt_too_long",
                "request_too_large",
                "string_above_max_length",
                "too_many_prompt_tokens",
                "tokens_limit_reached",
            }
        ),
        wording=_any_of(
            r"(maximum|max|available|model's|model) (context|prompt) (length|window|size)",
            r"context (length|window|size|limit) (of|is|has been|was|limit|exceed\w{0,8})",
            r"exceed\w{0,8} (\S{1,60} ){0,4}(context|max_model_len|token limit|model limit|max(imum)? (length|prompt))",
            r"(longer|larger|greater|more) than (\S{1,60} ){0,4}(context|maximum model length|max_model_len)",
            r"maximum (model|input|sequence) length",
            r"(prompt|input|message|messages|conversation|request) (is|are) too long",
            r"(prompt|input) too (long|large)|request body too large",
            r"too many (input |prompt )?tokens",
            r"too large for model with",
            r"input (token|length|tokens).{0,80}exceed",
            r"prompt token count of \d+ exceeds",
            r"reduce the length of the (messages|prompt|input|conversation)",
            r"`?inputs`? (tokens \+ `?max_new_tokens`? must be|must have less than)",
            r"range of input length should be",
            r"total length of all messages",
            r"input length and `?max_tokens`? exceed",
            r"current length is \d+ while limit is",
        ),
        examples=("maximum context length is", "prompt is too long", "reduce the length of the messages"),
    ),
    Rule("a request body that is too large", ContextTooLong, statuses=(413,)),
    Rule(
        "the model's own slip with a tool call or JSON",
        ProviderBadResponse,
        codes=frozenset(
            {"json_validate_failed", "tool_use_failed", "tool_call_validation_failed", "output_parse_failed"}
        ),
        wording=_any_of(r"failed to (call|parse) (a )?(function|tool)", r"tool call validation failed"),
        examples=("Failed to call a function",),
        retryable=True,
    ),
    Rule(
        "the key",
        ProviderAuthFailed,
        codes=frozenset(
            {
                "invalid_api_key",
                "API_KEY_INVALID",
                "API_KEY_SERVICE_BLOCKED",
                "API_KEY_HTTP_REFERRER_BLOCKED",
                "API_KEY_IP_ADDRESS_BLOCKED",
                "authentication_error",
                "account_deactivated",
            }
        ),
    ),
    Rule(
        "a model or a region that the account may not use",
        ProviderRejected,
        statuses=(403,),
        codes=frozenset(
            {
                "model_not_found",
                "model_not_available",
                "model_permission_blocked_org",
                "model_permission_blocked_project",
                "unsupported_country_region_territory",
                "unsupported_region",
            }
        ),
        wording=_any_of(
            r"(not have|no|lacks?|without) access to (the )?(model|this model|.{0,60}\bmodel\b)",
            r"model .{0,100}(does not exist|not (found|available|enabled|allowed|supported))",
            r"(country|region|territory|location)[^.]{0,60}not (supported|available|allowed)",
            r"not (supported|available|allowed) in (your|this) (country|region|territory|location)",
        ),
        examples=("does not have access to model", "Country, region, or territory not supported"),
    ),
    Rule("the key", ProviderAuthFailed, statuses=(401, 403)),
    Rule("the rate", ProviderRateLimited, statuses=(429,)),
    Rule("a time-out of the provider's own", ProviderTimeout, statuses=(408,), retryable=True),
    Rule("a fault of the provider's own", ProviderUnavailable, statuses=range(500, 600)),
    Rule("a fault of the provider's own", ProviderUnavailable, codes=frozenset({"overloaded_error", "server_error"})),
    Rule("anything else", ProviderRejected),
)


def meaning_of(provider: str, refusal: Refusal) -> ProviderError:
    """The error that a refusal stands for."""
    rule = next(rule for rule in RULES if rule.applies(refusal))
    words = [code for code in dict.fromkeys(refusal.codes) if _WORD.fullmatch(code)][:4]
    detail = (
        f"{provider} answered {refusal.status} ({', '.join(words)})."
        if words
        else f"{provider} answered {refusal.status}."
    )
    return rule.error(detail, retry_after_seconds=retry_after_seconds(refusal.headers), retryable=rule.retryable)


# --- reading a refusal ---


def read_refusal(status: int, body: bytes | Mapping[str, Any] | list[Any], headers: Mapping[str, str]) -> Refusal:
    """A refusal from a response's body. Any body is read; what is not understood leaves the status to decide."""
    low = {name.lower(): value for name, value in headers.items()}
    if not isinstance(body, bytes):
        return _of_document(status, body, low)
    start = body[:MAX_BODY_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"<":
        return Refusal(status, headers=low, is_html=True)
    try:
        return _of_document(status, orjson.loads(start), low)
    except orjson.JSONDecodeError:
        return Refusal(status, message=start[:4_096].decode("utf-8", "replace"), headers=low)


def in_stream(document: Mapping[str, Any]) -> Refusal | None:
    """The refusal that an object inside an answer is; None for a piece of the answer."""
    if not document.get("error"):
        if "choices" in document or "candidates" in document:  # nearly every object
            return None
        if not (
            document.get("object") == "error"
            or document.get("type") == "error"
            or ("error_code" in document and "message" in document)
            or bool(document.get("detail"))
        ):
            return None
    refusal = _of_document(0, document, {})
    return Refusal(_status_within(document), refusal.codes, refusal.message, refusal.params)


def _status_within(document: Mapping[str, Any]) -> int:
    """The HTTP status that an error object tells; 500 if it tells none."""
    for fields in _objects(document):
        for name in ("status_code", "status", "code", "http_status"):
            value = fields.get(name)
            number = int(value) if isinstance(value, str) and _STATUS.fullmatch(value) else value
            if type(number) is int and 400 <= number < 600:
                return number
    return 500


def _of_document(status: int, document: object, headers: Mapping[str, str]) -> Refusal:
    codes: list[str] = []
    messages: list[str] = []
    params: list[str] = []
    delay = ""
    for fields in _objects(document):
        codes += _texts(fields, "code", "type", "status", "error_code", "reason", "error_type")
        messages += _texts(fields, "message", "error", "detail", "msg", "raw", "title", "details")
        params += [_outermost(text) for text in _texts(fields, "param")]
        params += _location(fields.get("loc"))
        # Gemini says how long to wait in the body: {"@type": "...RetryInfo", "retryDelay": "34s"}.
        if isinstance(wanted := fields.get("retryDelay"), str | int | float):
            delay = delay or str(wanted).removesuffix("s")
    if delay:
        headers = {"retry-after": delay, **headers}
    params = [name[:MAX_CODE_CHARACTERS] for name in params if name][:MAX_CODES]
    codes = [*(code[:MAX_CODE_CHARACTERS] for code in codes[:MAX_CODES]), *params]
    return Refusal(status, tuple(codes), "\n".join(messages)[:8_192], tuple(params), headers)


def _objects(document: object, depth: int = _DEPTH) -> Iterator[Mapping[str, Any]]:
    """The error object and the objects within it, outermost first. Some vendors pack one as JSON text into another."""
    if depth == 0:
        return
    if isinstance(document, str) and document.lstrip()[:1] in ("{", "["):
        try:
            document = orjson.loads(document)
        except orjson.JSONDecodeError:
            return
    if isinstance(document, Mapping):
        yield document
        for name in ("error", "errors", "detail", "details", "metadata", "message", "raw", "innererror"):
            yield from _objects(document.get(name), depth - 1)
    elif isinstance(document, list):
        for entry in document[:8]:
            yield from _objects(entry, depth - 1)


def _texts(fields: Mapping[str, Any], *names: str) -> list[str]:
    return [value for name in names if isinstance(value := fields.get(name), str) and value]


def _outermost(path: str) -> str:
    """`messages` of `messages[3].content`."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _location(path: object) -> list[str]:
    """The field that FastAPI and Mistral name: ["body", "logit_bias"]."""
    names = [name for name in path if isinstance(name, str)] if isinstance(path, list) else []
    return [name for name in names if name != "body"][:1]


# --- how long to wait ---


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks to wait, at most a day. None if it does not say, or nothing that can be read."""
    milliseconds = _number(headers.get("retry-after-ms", ""))
    value = headers.get("retry-after", "")
    seconds = milliseconds / 1_000 if not math.isnan(milliseconds) else _number(value)
    if math.isnan(seconds):
        seconds = _seconds_until(value)
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seconds_until(http_date: str) -> float:
    try:
        return parsedate_to_datetime(http_date).timestamp() - time.time()
    except (ValueError, OverflowError, TypeError, IndexError):
        return math.nan
