"""Whole runs over what providers, and the gateways before them, really send, byte for byte."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest
import structlog

from services.agent.domain import Budget, Completed, Message, Settings, TaskWarning, ToolCall, Usage
from services.agent.providers import Provider
from services.agent.providers.google import Google
from services.agent.providers.openai import OpenAICompatible
from services.common.providers.errors import ProviderError
from tests.fakes.raw import EVENT_STREAM, HTML, JSON, Answer, RawServer
from tests.unit.agent.test_runs import TIERS, Stage, on_stage

Stream = Callable[..., Answer]


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer() as server:
        yield server


@pytest.fixture
async def openai(server: RawServer) -> AsyncIterator[Provider]:
    provider = OpenAICompatible("openai", api_key="key", base_url=server.url)
    yield provider
    await provider.close()


@pytest.fixture
async def google(server: RawServer) -> AsyncIterator[Provider]:
    provider = Google(api_key="key", base_url=server.url)
    yield provider
    await provider.close()


# --- the two wire formats ---


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def delta(text: object = "", finish: str | None = None, **more: Any) -> bytes:
    fields = {"content": text, **more} if text or more else {}
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]})


def usage(prompt: object = 7, completion: object = 3, **more: Any) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **more}})


DONE = b"data: [DONE]\n\n"
STOP = delta(finish="stop")


def stream(*pieces: bytes) -> Answer:
    return Answer(pieces)


def gemini(text: str | None = None, finish: str | None = None, tokens: int | None = None, **part: Any) -> bytes:
    candidate: dict[str, Any] = {"index": 0}
    if text is not None or part:
        candidate["content"] = {"role": "model", "parts": [{"text": text, **part} if text is not None else part]}
    if finish:
        candidate["finishReason"] = finish
    counts = {"promptTokenCount": 7} | ({"candidatesTokenCount": tokens} if tokens is not None else {})
    return event({"candidates": [candidate], "usageMetadata": counts})


def refusal(status: int, message: str, **fields: Any) -> Answer:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}
    return Answer([json.dumps({"error": error}).encode()], status, JSON)


async def answer_of(stage: Stage) -> Completed:
    return await stage.answer()


async def code_of(stage: Stage) -> str:
    with pytest.raises(ProviderError) as caught:
        await stage.answer()
    return caught.value.code


# --- reading a stream ---

NOISE = (
    b"data:\n\n",
    b"data\n\n",
    b"data: null\n\n",
    b"data: : keepalive\n\n",
    b": OPENROUTER PROCESSING\n\n",
    b"event: ping\n\n",
    b"event: message\nid: 7\nretry: 100\n",
    b'event: ping\ndata: {"type":"ping"}\n\n',
    b"\r\n\r\n",
)


@pytest.mark.parametrize("noise", NOISE)
async def test_what_stands_between_two_pieces_is_skipped(noise: bytes, server: RawServer, openai: Provider) -> None:
    server.answer(stream(noise, delta("Par"), noise, delta("is"), noise, STOP, noise, usage(), noise, DONE))
    stage = on_stage(openai)
    assert await answer_of(stage) == Completed("Paris", "stop")
    assert stage.run.usage == Usage(7, 3)


@pytest.mark.parametrize("noise", [*NOISE, DONE[:0]])
async def test_gemini_is_read_by_the_same_rules(noise: bytes, server: RawServer, google: Provider) -> None:
    server.answer(stream(noise, gemini("Par"), noise, gemini("is", "STOP", 3), noise, DONE))
    stage = on_stage(google, settings=Settings("openai", "m", "none"))
    assert await answer_of(stage) == Completed("Paris", "stop")
    assert stage.run.usage == Usage(7, 3)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["ok \ud83d", "\ude00"], "ok 😀"),
        (["ok \ud83d", "", "\ude00!"], "ok 😀!"),
        (["\ud83d", "\ude00"], "😀"),
        (["a \ud83d", " b"], "a \ufffd b"),
        (["a \ude00 b"], "a \ufffd b"),
        (["a \ud83d"], "a \ufffd"),
        (["nul \0 here"], "nul \ufffd here"),
    ],
)
async def test_halves_of_an_emoji_are_joined(
    pieces: Sequence[str], text: str, server: RawServer, openai: Provider
) -> None:
    server.answer(stream(*map(delta, pieces), STOP, usage(), DONE))
    stage = on_stage(openai)
    assert await answer_of(stage) == Completed(text, "stop")
    assert "".join(event.delta for event in stage.events) == text


async def test_halves_of_an_emoji_from_gemini_are_joined(server: RawServer, google: Provider) -> None:
    server.answer(stream(gemini("ok \ud83d"), gemini("\ude00", "STOP", 3)))
    assert (await answer_of(on_stage(google))).content == "ok 😀"


LONG = "word " * 100  # 500 bytes, about 125 tokens


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([(7, 130)], Usage(7, 130)),
        ([(7, 1)], Usage(7, 1)),  # above zero: taken as it is
        ([(7, None)], Usage(7, 125, estimated=True)),
        ([(7, 0)], Usage(7, 125, estimated=True)),
        ([(0, 0)], Usage(4, 125, estimated=True)),
        ([(None, 130)], Usage(4, 130, estimated=True)),
        ([(7, 2**64)], Usage(7, 125, estimated=True)),
        ([(-7, -130)], Usage(4, 125, estimated=True)),
        ([(7, 130.5)], Usage(7, 125, estimated=True)),
        ([(7, "130")], Usage(7, 125, estimated=True)),
        ([(7, True)], Usage(7, 125, estimated=True)),
        ([(7, 130), (0, 0)], Usage(7, 130)),
        ([(7, None), (7, 130)], Usage(7, 130)),
        ([], Usage(4, 125, estimated=True)),
    ],
)
async def test_an_implausible_figure_is_estimated(
    reports: Sequence[tuple[object, object]], expected: Usage, server: RawServer, openai: Provider
) -> None:
    server.answer(stream(delta(LONG), STOP, *(usage(*report) for report in reports), DONE))
    stage = on_stage(openai)
    await answer_of(stage)
    assert stage.run.usage == expected


@pytest.mark.parametrize("first", [(7, None), (7, 0), (7, 1)])
async def test_text_after_a_report_is_estimated(
    first: tuple[object, object], server: RawServer, openai: Provider
) -> None:
    server.answer(stream(usage(*first), delta(LONG), STOP, DONE))
    stage = on_stage(openai)
    await answer_of(stage)
    assert stage.run.usage == Usage(7, 125 + (1 if first[1] else 0), estimated=True)


@pytest.mark.parametrize("counts", [{"candidatesTokenCount": 2**70}, {}, {"candidatesTokenCount": None}])
async def test_an_implausible_figure_of_gemini_is_estimated(
    counts: Mapping[str, Any], server: RawServer, google: Provider
) -> None:
    candidate = {"content": {"parts": [{"text": LONG}]}, "finishReason": "STOP"}
    reported: dict[str, Any] = {"promptTokenCount": 7, **counts}
    server.answer(stream(event({"candidates": [candidate], "usageMetadata": reported})))
    stage = on_stage(google)
    await answer_of(stage)
    assert stage.run.usage == Usage(7, 125, estimated=True)


async def test_thinking_that_only_the_total_counts_is_paid(server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta("Paris"), STOP, usage(7, 2, total_tokens=209), DONE))
    stage = on_stage(openai)
    await answer_of(stage)
    assert stage.run.usage == Usage(7, 202)


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("end_turn", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("model_length", "length"),
        ("COMPLETE", "stop"),
        ("repetition_penalty", "repetition_penalty"),
    ],
)
async def test_a_finish_reason_is_read_in_each_vendors_word(
    reason: str, kept: str, server: RawServer, openai: Provider
) -> None:
    server.answer(stream(delta("Paris"), delta(finish=reason), usage(), DONE))
    assert await answer_of(on_stage(openai)) == Completed("Paris", kept)


async def test_an_unknown_finish_reason_is_logged(server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta("Paris"), delta(finish="tired"), usage(), DONE))
    with structlog.testing.capture_logs() as logs:
        await answer_of(on_stage(openai))
    assert {"event": "unknown_finish_reason", "log_level": "warning", "provider": "openai", "reason": "tired"} in logs


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("error", "provider_unavailable"),
        ("insufficient_system_resource", "provider_unavailable"),
        ("refusal", "content_filtered"),
        ("content_filter", "content_filtered"),
        ("sensitive", "content_filtered"),
    ],
)
async def test_a_finish_reason_may_be_a_failure(reason: str, code: str, server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta("Par"), delta(finish=reason), usage(), DONE))
    assert await code_of(on_stage(openai)) == code


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL"])
async def test_a_tool_call_that_gemini_could_not_read_is_tried_again(
    reason: str, server: RawServer, google: Provider
) -> None:
    server.answer(stream(gemini(finish=reason)), stream(gemini("Paris", "STOP", 3)))
    assert (await answer_of(on_stage(google))).content == "Paris"


EMPTY = {
    "nothing": stream(delta(), STOP, usage(7, 0), DONE),
    "blanks": stream(delta(" \n"), STOP, usage(7, 1), DONE),
    "no choice": stream(event({"choices": []}), DONE),
    "whole": Answer([b'{"choices":[{"message":{"content":""},"finish_reason":"stop"}]}'], headers=JSON),
}


@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY.keys())
async def test_an_empty_answer_is_tried_again(empty: Answer, server: RawServer, openai: Provider) -> None:
    server.answer(empty, stream(delta("Paris"), STOP, usage(), DONE))
    assert await answer_of(on_stage(openai)) == Completed("Paris", "stop")


@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY.keys())
async def test_an_answer_that_stays_empty_is_a_failure(empty: Answer, server: RawServer, openai: Provider) -> None:
    server.answer(empty)
    assert await code_of(on_stage(openai)) == "provider_bad_response"
    assert len(server.bodies) == 3


async def test_a_candidate_of_gemini_without_parts_is_tried_again(server: RawServer, google: Provider) -> None:
    server.answer(stream(gemini(finish="STOP", tokens=0)), stream(gemini("Paris", "STOP", 3)))
    assert (await answer_of(on_stage(google))).content == "Paris"


async def test_an_answer_that_reasoning_used_up_says_so(server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta(reasoning_content="hmm"), delta(finish="length"), usage(7, 300), DONE))
    stage = on_stage(openai)
    assert await answer_of(stage) == Completed("", "length")
    assert stage.run.usage == Usage(7, 300)


async def test_leading_blanks_are_kept_once_a_word_comes(server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta("\n"), delta(" "), delta("Paris "), STOP, usage(), DONE))
    stage = on_stage(openai)
    assert await answer_of(stage) == Completed("\n Paris ", "stop")
    assert next(event.delta for event in stage.events).startswith("\n P")


WHOLE = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}


@pytest.mark.parametrize("headers", [JSON, EVENT_STREAM])
async def test_a_whole_completion_is_the_answer(
    headers: Mapping[str, str], server: RawServer, openai: Provider
) -> None:
    server.answer(Answer([json.dumps(WHOLE, indent=2).encode()], headers=headers))
    stage = on_stage(openai)
    assert await answer_of(stage) == Completed("Paris", "stop")
    assert stage.run.usage == Usage(7, 3)


async def test_a_whole_answer_of_gemini_is_the_answer(server: RawServer, google: Provider) -> None:
    body = b"[" + gemini("Par")[6:].strip() + b",\n" + gemini("is", "STOP", 3)[6:].strip() + b"]"
    server.answer(Answer([body[:20], body[20:]], headers=JSON))
    assert await answer_of(on_stage(google)) == Completed("Paris", "stop")


ERRORS_INSIDE = [
    ({"error": {"message": "Overloaded", "code": 503}}, "provider_unavailable"),
    ({"error": "Something went wrong"}, "provider_unavailable"),
    ({"error": {"message": "slow down", "code": 429}}, "provider_rate_limited"),
    ({"object": "error", "message": "CUDA error", "type": "InternalServerError", "code": 500}, "provider_unavailable"),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "provider_unavailable"),
    ({"error_code": "INTERNAL_ERROR", "message": "failed"}, "provider_unavailable"),
]


@pytest.mark.parametrize(("document", "code"), ERRORS_INSIDE)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_error_object_with_a_200_is_the_error_it_is(
    document: object, code: str, is_stream: bool, server: RawServer, openai: Provider
) -> None:
    body = event(document) if is_stream else json.dumps(document).encode()
    server.answer(Answer([body], headers=EVENT_STREAM if is_stream else JSON))
    assert await code_of(on_stage(openai)) == code
    assert len(server.bodies) == 3


@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_error_object_before_any_text_is_tried_again(
    is_stream: bool, server: RawServer, openai: Provider
) -> None:
    document = {"error": {"message": "Overloaded", "code": 503}}
    server.answer(
        Answer([event(document) if is_stream else json.dumps(document).encode()]),
        stream(delta("Paris"), STOP, usage(), DONE),
    )
    assert (await answer_of(on_stage(openai))).content == "Paris"


async def test_an_answer_that_ends_in_done_without_a_reason_is_kept(server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta("Paris"), usage(), DONE))
    with structlog.testing.capture_logs() as logs:
        assert await answer_of(on_stage(openai)) == Completed("Paris", "stop")
    assert "no_finish_reason" in [entry["event"] for entry in logs]


async def test_an_answer_that_is_cut_before_its_end_is_no_answer(server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta("Par"), usage()))
    assert await code_of(on_stage(openai)) == "provider_unavailable"
    assert len(server.bodies) == 1


async def test_content_in_parts_is_joined_and_thoughts_are_set_apart(server: RawServer, openai: Provider) -> None:
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "Let me think."}]}]
    text = [{"type": "text", "text": "Par"}, {"type": "text", "text": "is"}]
    server.answer(stream(delta(thinking), delta(text), delta("!"), STOP, usage(), DONE))
    assert await answer_of(on_stage(openai)) == Completed("Paris!", "stop")


def piece(**fields: Any) -> bytes:
    return delta(tool_calls=[fields])


CALL = '{"a":1,"b":2}'
TOOL_CALLS = {
    "as openai does": [
        piece(index=0, id="c1", type="function", function={"name": "add", "arguments": ""}),
        piece(index=0, function={"arguments": CALL[:5]}),
        piece(index=0, function={"arguments": CALL[5:]}),
    ],
    "name repeated": [
        piece(index=0, id="c1", function={"name": "add", "arguments": CALL[:5]}),
        piece(index=0, id="c1", function={"name": "add", "arguments": CALL[5:]}),
    ],
    "no index": [
        piece(id="c1", function={"name": "add", "arguments": CALL[:5]}),
        piece(function={"arguments": CALL[5:]}),
    ],
    "no id": [
        piece(index=0, function={"name": "add", "arguments": CALL[:5]}),
        piece(index=0, id=None, function={"name": None, "arguments": CALL[5:]}),
    ],
    "arguments as an object": [piece(index=0, id="c1", function={"name": "add", "arguments": {"a": 1, "b": 2}})],
    "as a function call": [
        delta(function_call={"name": "add", "arguments": CALL[:5]}),
        delta(function_call={"arguments": CALL[5:]}),
    ],
    "finished with stop": [piece(index=0, id="c1", function={"name": "add", "arguments": CALL}), STOP],
}


@pytest.mark.parametrize("pieces", TOOL_CALLS.values(), ids=TOOL_CALLS.keys())
async def test_a_tool_call_is_one_call_however_it_is_cut(
    pieces: Sequence[bytes], server: RawServer, openai: Provider
) -> None:
    reason = delta(finish="tool_calls") if pieces[-1] != STOP else b""
    server.answer(stream(*pieces, reason, usage(), DONE), stream(delta("It is 3."), STOP, usage(), DONE))
    stage = on_stage(openai)
    assert await answer_of(stage) == Completed("It is 3.", "stop")
    assert stage.tool_calls == [CALL]
    [call] = [call for step in stage.kept for message in step.messages for call in message.tool_calls]
    assert call == ToolCall(call.id, "add", CALL)
    assert call.id


@pytest.mark.parametrize("with_index", [True, False])
async def test_two_calls_that_share_an_index_are_told_apart_by_their_ids(
    with_index: bool, server: RawServer, openai: Provider
) -> None:
    index = {"index": 0} if with_index else {}
    calls = [piece(**index, id=id, function={"name": "add", "arguments": CALL}) for id in ("c1", "c2")]
    server.answer(stream(*calls, delta(finish="tool_calls"), DONE), stream(delta("3"), STOP, usage(), DONE))
    stage = on_stage(openai)
    await answer_of(stage)
    assert stage.tool_calls == [CALL, CALL]


async def test_a_call_that_the_limit_cut_is_left_out(server: RawServer, openai: Provider) -> None:
    cut = piece(index=0, id="c1", function={"name": "add", "arguments": '{"a":'})
    server.answer(stream(delta("Let me add."), cut, delta(finish="length"), usage(), DONE))
    assert await answer_of(on_stage(openai)) == Completed("Let me add.", "length")


async def test_an_organisation_that_may_not_stream_is_asked_without(server: RawServer, openai: Provider) -> None:
    server.answer(
        refusal(
            400,
            "Your organization must be verified to stream this model. Please go to: https://platform.openai.com",
            param="stream",
            code="unsupported_value",
        ),
        Answer([json.dumps(WHOLE).encode()], headers=JSON),
    )
    stage = on_stage(openai)
    assert await answer_of(stage) == Completed("Paris", "stop")
    assert [body["stream"] for body in server.bodies] == [True, False]
    assert "stream_options" not in server.bodies[1]
    assert stage.told == ["delta:Paris"]


async def test_text_beyond_geminis_last_report_is_estimated_when_it_is_cancelled(
    server: RawServer, google: Provider
) -> None:
    server.answer(stream(gemini(LONG)))  # the prompt's tokens, and none of the answer's
    stage = on_stage(google)
    with pytest.raises(ProviderError):
        await answer_of(stage)
    assert stage.run._reply is not None
    assert stage.run._reply.usage == Usage(7, 125, estimated=True)


# --- what a refusal leads to ---

GROQ = (
    "Request too large for model `openai/gpt-oss-120b` in organization `org_01` service tier `on_demand` on tokens per "
    "minute (TPM): Limit 8000, Requested 9000, please reduce your message size and try again."
)


def rich(**fields: Any) -> dict[str, Any]:
    """A turn whose hold buys 4,000 tokens."""
    budget = Budget(held_nano=10_000, tiers=TIERS, output_tokens=4_000)
    return {"budget": budget, "settings": Settings("openai", "gpt-4o-mini", "none", **fields)}


@pytest.mark.parametrize("status", [413, 429])
async def test_a_request_beyond_the_tokens_per_minute_is_asked_with_a_smaller_limit(
    status: int, server: RawServer, openai: Provider
) -> None:
    server.answer(
        refusal(status, GROQ, code="rate_limit_exceeded", type="tokens"), stream(delta("hi"), STOP, usage(), DONE)
    )
    assert (await answer_of(on_stage(openai, **rich()))).content == "hi"
    assert [body["max_completion_tokens"] for body in server.bodies] == [4_000, 3_000]


async def test_a_smaller_limit_is_tried_once(server: RawServer, openai: Provider) -> None:
    server.answer(refusal(413, GROQ, code="rate_limit_exceeded", type="tokens"))
    assert await code_of(on_stage(openai, **rich())) == "provider_rate_limited"
    assert len(server.bodies) == 2


async def test_a_request_whose_input_alone_is_beyond_is_rate_limited(server: RawServer, openai: Provider) -> None:
    server.answer(refusal(413, GROQ.replace("9000", "90000"), code="rate_limit_exceeded", type="tokens"))
    assert await code_of(on_stage(openai, **rich())) == "provider_rate_limited"
    assert len(server.bodies) == 1


def dropped(stage: Stage) -> list[str]:
    return [warning.detail for warning in stage.run.warnings if warning.code == "parameter_dropped"]


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5-mini", "gpt-5-nano-2025-08-07", "o3", "o4-mini"])
async def test_a_parameter_that_a_family_does_not_take_is_left_out(
    model: str, server: RawServer, openai: Provider
) -> None:
    server.answer(stream(delta("hi"), STOP, usage(), DONE))
    settings = Settings("openai", model, "none", temperature=0.2, presence_penalty=1, model_parameters={"seed": 7})
    stage = on_stage(openai, settings=settings)
    await answer_of(stage)
    [body] = server.bodies
    assert not {"temperature", "presence_penalty"} & body.keys()
    assert body["seed"] == 7
    assert dropped(stage) == ["temperature", "presence_penalty"]


@pytest.mark.parametrize("model", ["gpt-5-chat-latest", "gpt-5.1", "gpt-4o-mini"])
async def test_a_parameter_that_a_family_may_take_is_sent(model: str, server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta("hi"), STOP, usage(), DONE))
    stage = on_stage(openai, settings=Settings("openai", model, "none", temperature=0.2))
    await answer_of(stage)
    assert server.bodies[0]["temperature"] == 0.2
    assert stage.run.warnings == ()


REFUSED_PARAMETERS = [
    (
        refusal(
            400,
            "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) is supported.",
            param="temperature",
            code="unsupported_value",
        ),
        "temperature",
    ),
    (refusal(400, "`temperature` is deprecated for this model."), "temperature"),
    (refusal(400, "`temperature` and `top_p` cannot both be specified for this model."), "top_p"),
    (refusal(400, "property 'logit_bias' is unsupported, did you mean 'logprobs'?"), "logit_bias"),
    (refusal(400, "Model grok-4 does not support parameter presencePenalty."), "presence_penalty"),
    (refusal(400, "Argument not supported on this model: stop"), "stop"),
    (
        Answer([b'{"detail":[{"type":"extra_forbidden","loc":["body","logit_bias"],"msg":"no"}]}'], 422, JSON),
        "logit_bias",
    ),
]


@pytest.mark.parametrize(("refused", "name"), REFUSED_PARAMETERS)
async def test_a_parameter_that_the_provider_refuses_is_left_out_of_one_more_try(
    refused: Answer, name: str, server: RawServer, openai: Provider
) -> None:
    server.answer(refused, stream(delta("hi"), STOP, usage(), DONE))
    parameters = {"logit_bias": {"7": 1}, "stop": ["END"], "seed": 7}
    fields = rich(temperature=0.2, top_p=0.9, presence_penalty=0.5, model_parameters=parameters)
    stage = on_stage(openai, **fields)
    assert (await answer_of(stage)).content == "hi"
    assert set(server.bodies[0]) - set(server.bodies[1]) == {name}
    assert stage.run.warnings == (TaskWarning("parameter_dropped", name),)
    await answer_of(on_stage(openai, **fields))
    assert name in server.bodies[2], "what one session was refused must not change another's request"


async def test_a_parameter_that_gemini_refuses_is_left_out_of_one_more_try(server: RawServer, google: Provider) -> None:
    error = {"error": {"code": 400, "message": "Penalty is not enabled for this model", "status": "INVALID_ARGUMENT"}}
    server.answer(Answer([json.dumps(error).encode()], 400, JSON), stream(gemini("hi", "STOP", 3)))
    stage = on_stage(google, settings=Settings("google", "m", "none", temperature=0.2, presence_penalty=0.5))
    assert (await answer_of(stage)).content == "hi"
    assert server.bodies[1]["generationConfig"].keys() == {"temperature", "maxOutputTokens"}
    assert dropped(stage) == ["presence_penalty"]


async def test_a_refusal_that_names_nothing_is_not_tried_again(server: RawServer, openai: Provider) -> None:
    server.answer(refusal(400, "Something about seed and stop and user is wrong"))
    assert await code_of(on_stage(openai, **rich(model_parameters={"seed": 7, "stop": "x"}))) == "provider_rejected"
    assert len(server.bodies) == 1


async def test_a_server_that_refuses_everything_is_not_asked_for_ever(server: RawServer, openai: Provider) -> None:
    names = [f"parameter_{number}" for number in range(20)]
    server.answer(refusal(400, f"not supported: {', '.join(names)}"))
    parameters = dict.fromkeys(names, 1)
    assert await code_of(on_stage(openai, **rich(model_parameters=parameters))) == "provider_rejected"
    assert len(server.bodies) <= 8


async def test_tool_use_failed_is_tried_again(server: RawServer, openai: Provider) -> None:
    server.answer(
        refusal(400, "Failed to call a function.", code="tool_use_failed"), stream(delta("hi"), STOP, usage(), DONE)
    )
    assert (await answer_of(on_stage(openai))).content == "hi"


async def test_a_web_page_of_a_proxy_is_tried_again(server: RawServer, openai: Provider) -> None:
    server.answer(
        Answer([b"<html>403 Forbidden</html>"], 403, HTML),
        Answer([b"<html>Welcome to the hotel</html>"], 200, HTML),
        stream(delta("hi"), STOP, usage(), DONE),
    )
    assert (await answer_of(on_stage(openai))).content == "hi"


@pytest.mark.parametrize("value", ["Fri, 31 Dec 99999 23:59:59 GMT", "99999999999999999999", "-5", "soon"])
async def test_an_absurd_retry_after_is_no_failure_of_ours(value: str, server: RawServer, openai: Provider) -> None:
    server.answer(Answer([b"{}"], 429, JSON | {"retry-after": value}))
    assert await code_of(on_stage(openai)) == "provider_rate_limited"


async def test_retry_after_in_milliseconds_is_waited_for(server: RawServer, openai: Provider) -> None:
    server.answer(
        Answer([b"{}"], 429, JSON | {"retry-after-ms": "30", "retry-after": "1000"}),
        stream(delta("hi"), STOP, usage(), DONE),
    )
    assert (await answer_of(on_stage(openai))).content == "hi"


async def test_an_error_without_end_is_bounded(server: RawServer, openai: Provider) -> None:
    server.answer(Answer([b"x" * 65_536], 400, HTML, endless=True))
    assert await code_of(on_stage(openai)) == "provider_rejected"


# --- what is sent ---


async def test_nothing_blank_is_sent(server: RawServer, openai: Provider) -> None:
    server.answer(stream(delta("hi"), STOP, usage(), DONE))
    history = (
        Message("user", "a"),
        Message("assistant", " \n"),
        Message("user", "b"),
        Message("assistant", " ", (ToolCall("c1", "add", ""),)),
        Message("tool", "", tool_call_id="c1"),
        Message("user", "c"),
    )
    settings = Settings("openai", "gpt-4o-mini", "none", system_prompt=" \t\n")
    await answer_of(on_stage(openai, settings=settings, history=history))
    messages = server.bodies[0]["messages"]
    assert [message["role"] for message in messages] == ["user", "user", "assistant", "tool", "user"]
    assert messages[2]["content"] is None
    assert all(message["content"] is None or message["content"].strip() for message in messages)
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_nothing_blank_is_sent_to_gemini(server: RawServer, google: Provider) -> None:
    server.answer(stream(gemini("hi", "STOP", 3)))
    history = (Message("user", "a"), Message("assistant", "\n"), Message("user", "b"))
    await answer_of(on_stage(google, settings=Settings("google", "m", "none", system_prompt="  "), history=history))
    [body] = server.bodies
    assert [content["parts"] for content in body["contents"]] == [[{"text": "a"}], [{"text": "b"}]]
    assert not body.get("systemInstruction")


async def test_a_server_that_ignores_the_output_limit_is_stopped(server: RawServer, openai: Provider) -> None:
    server.answer(Answer([delta("word " * 10)], endless=True))
    budget = Budget(held_nano=10_000, tiers=TIERS, output_tokens=300)
    stage = on_stage(openai, budget=budget)
    completed = await answer_of(stage)
    assert completed.finish_reason == "credits"
    assert 300 <= stage.run.usage.output_tokens < 1_500
    await server.hung_up.wait()


@pytest.mark.parametrize(
    ("first", "sent"),
    [
        ("Unsupported parameter: 'max_completion_tokens'. Use 'max_tokens' instead.", "max_tokens"),
        ("unknown field: max_completion_tokens", "max_tokens"),
    ],
)
async def test_a_server_that_refuses_the_name_of_the_limit_is_asked_by_the_older_one(
    first: str, sent: str, server: RawServer, openai: Provider
) -> None:
    server.answer(refusal(400, first), stream(delta("hi"), STOP, usage(), DONE))
    stage = on_stage(openai)
    await answer_of(stage)
    assert sent in server.bodies[1]
    assert "max_completion_tokens" not in server.bodies[1]
    assert stage.run.warnings == ()


async def test_a_server_that_refuses_stream_options_is_asked_without(server: RawServer, openai: Provider) -> None:
    server.answer(
        Answer([b'{"detail":"Extra inputs are not permitted: stream_options"}'], 422, JSON),
        stream(delta(LONG), STOP, DONE),
    )
    stage = on_stage(openai)
    await answer_of(stage)
    assert "stream_options" not in server.bodies[1]
    assert stage.run.usage.estimated


async def test_a_limit_above_what_the_model_writes_is_lowered(server: RawServer, openai: Provider) -> None:
    message = "max_tokens is too large: 4000. This model supports at most 2048 completion tokens."
    server.answer(refusal(400, message, param="max_tokens"), stream(delta("hi"), STOP, usage(), DONE))
    await answer_of(on_stage(openai, **rich()))
    assert server.bodies[1]["max_completion_tokens"] == 2_048
