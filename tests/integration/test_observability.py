"""What the platform sees: one trace for each turn, metrics of every process, and never a word of what was said."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.audio import tone
from tests.fakes.collector import Collector, Span
from tests.integration.stack import Stack, User
from tests.integration.waiting import until
from tests.servers import Postgres

CANARY = "canary-7f3a91"
SENT = f"The password is {CANARY}-content."
SECRETS = ("sk-integration", "google-integration", "integration-tests-sign")
JSON = {"Content-Type": "application/json"}
# The span that a client's own traceparent names.
OUTSIDE = "00f067aa0ba902b7"
SERVICES = ("gateway", "chat", "billing", "agent", "speech", "translate")

# Each hop of a sync turn as (service, span) below (service, span); the request comes from outside.
HOPS = {
    ("chat", "backendai.chat.v1.ChatService/SendMessage"): ("gateway", "backendai.chat.v1.ChatService/SendMessage"),
    ("chat", "postgresql"): ("chat", "backendai.chat.v1.ChatService/SendMessage"),
    ("chat", "backendai.billing.v1.BillingService/HoldCredits"): (
        "chat",
        "backendai.chat.v1.ChatService/SendMessage",
    ),
    ("billing", "backendai.billing.v1.BillingService/HoldCredits"): (
        "chat",
        "backendai.billing.v1.BillingService/HoldCredits",
    ),
    ("chat", "publish backendai.jobs"): ("chat", "backendai.chat.v1.ChatService/SendMessage"),
    ("agent", "receive backendai.jobs"): ("chat", "publish backendai.jobs"),
    ("chat", "backendai.chat.v1.TaskService/ClaimTasks"): ("agent", "backendai.chat.v1.TaskService/ClaimTasks"),
    ("agent", "run"): ("chat", "backendai.chat.v1.ChatService/SendMessage"),
    ("agent", "chat gpt-4o-mini"): ("agent", "run"),
    ("chat", "backendai.chat.v1.TaskService/CompleteTask"): ("agent", "backendai.chat.v1.TaskService/CompleteTask"),
    ("chat", "settle"): ("chat", "backendai.chat.v1.TaskService/CompleteTask"),
    ("billing", "backendai.billing.v1.BillingService/SettleHolds"): (
        "chat",
        "backendai.billing.v1.BillingService/SettleHolds",
    ),
}


@dataclass(frozen=True)
class Watched:
    """A system whose traces are collected."""

    stack: Stack
    collector: Collector
    database_url: str

    async def trace(self, trace_id: str, *awaited: tuple[str, str]) -> list[Span]:
        """The spans of a trace, once the awaited ones and the parents of all have come: each process sends its own."""

        async def found() -> list[Span]:
            spans = [span for span in self.collector.spans if span.trace_id == trace_id]
            known = {span.span_id for span in spans} | {OUTSIDE}
            named = {(span.service, span.name) for span in spans}
            return spans if named.issuperset(awaited) and all(span.parent_id in known for span in spans) else []

        return await until(found, saying=f"the whole trace with {awaited}")


@pytest.fixture(scope="module")
def watched(postgres: Postgres, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One process of each, debug logs on."""
    url = postgres.create_database("watched", template=migrated_template)
    with Collector() as collector:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "LOG_LEVEL": "debug",
            "TRANSLATE_PROVIDER": "openai",
        }
        with Stack(tmp_path_factory.mktemp("watched"), url, of_each=1, env=env) as running:
            yield Watched(running, collector, url)


def trace_parent(trace_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{OUTSIDE}-01"}


async def test_a_turn_is_one_trace_with_every_hop_in_it(watched: Watched) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with watched.stack.user() as alice:
        session = await alice.new_session()
        response = await alice.say(session, **trace_parent(trace_id))
        assert response.status_code == 201, response.text
    request = ("gateway", "POST /api/workspaces/{workspace_id}/chats/{session_id}/messages/")
    by_id = {span.span_id: span for span in await watched.trace(trace_id, request, *HOPS)}
    edges = {
        ((span.service, span.name), (parent.service, parent.name))
        for span in by_id.values()
        if (parent := by_id.get(span.parent_id))
    }
    missing = [(child, parent) for child, parent in HOPS.items() if (child, parent) not in edges]
    assert not missing, (missing, sorted(edges))
    (asked,) = (span for span in by_id.values() if span.name == "chat gpt-4o-mini")
    assert asked.attributes["gen_ai.provider.name"] == "openai"
    assert asked.attributes["gen_ai.usage.output_tokens"] == response.json()["usage"]["output_tokens"]


async def test_a_failed_turn_says_in_its_trace_what_failed(watched: Watched) -> None:
    trace_id = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    watched.stack.script("openai", default={"error": "invalid_key"})
    async with watched.stack.user() as alice:
        failed = await alice.say(await alice.new_session(), **trace_parent(trace_id))
    watched.stack.script("openai", default={})
    assert failed.status_code == 502
    spans = await watched.trace(trace_id, ("agent", "run"))
    words = {span.name: span.failed for span in spans if span.service == "agent" and span.failed}
    assert words == {"run": "provider_auth_failed", "chat gpt-4o-mini": "provider_auth_failed"}


async def test_chores_leave_no_traces(watched: Watched) -> None:
    async with watched.stack.user() as alice:
        session = await alice.new_session()
        watched.stack.script("openai", next=[{"end_delay_ms": 2_500}])  # long enough for a heartbeat
        assert (await alice.say(session)).status_code == 201
    names = {span.name for span in watched.collector.spans}
    assert not names & {"backendai.chat.v1.TaskService/HeartbeatTasks", "grpc.health.v1.Health/Check"}


async def test_log_lines_of_a_traced_request_name_its_trace(watched: Watched) -> None:
    trace_id = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
    async with watched.stack.user() as alice:
        await alice.say(await alice.new_session(), **trace_parent(trace_id))
    for process, event in (("agent0", "run_ended"), ("chat0", "task_ended")):

        async def told(process: str = process, event: str = event) -> bool:
            lines = watched.stack[process].log.read_text().splitlines()
            found = [json.loads(line) for line in lines if f'"{event}"' in line]
            return any(line.get("trace_id") == trace_id for line in found)

        await until(told, saying=f"{event} with its trace")


def ask(stack: Stack, process: str, path: str) -> httpx.Response:
    """Ask a process's ops port."""
    return httpx.get(f"{stack.ops_urls[process]}{path}")


def scraped(stack: Stack, process: str) -> dict[str, float]:
    """A process's samples, as name{label="value",…}."""
    text = ask(stack, process, "/metrics").raise_for_status().text
    return {
        f"{sample.name}{{{','.join(f'{key}={value}' for key, value in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_every_process_counts_what_a_turn_makes_it_do(watched: Watched) -> None:
    stack = watched.stack
    send = "method=POST,route=/api/workspaces/{workspace_id}/chats/{session_id}/messages/,status=201"
    chat, billing = "backendai.chat.v1", "backendai.billing.v1.BillingService"
    moved = {
        "gateway0": [f"backendai_http_request_duration_seconds_count{{{send}}}"],
        "chat0": [
            f"backendai_grpc_server_duration_seconds_count{{code=OK,method=/{chat}.ChatService/SendMessage}}",
            "backendai_tasks_ended_total{code=,state=completed}",
        ],
        "billing0": [
            f"backendai_grpc_server_duration_seconds_count{{code=OK,method=/{billing}/HoldCredits}}",
            "backendai_holds_total{kind=chat,outcome=held}",
            "backendai_holds_settled_total{kind=chat}",
            "backendai_tokens_total{direction=output,model=gpt-4o-mini,provider=openai}",
            "backendai_credits_charged_total{kind=chat,model=gpt-4o-mini,provider=openai}",
        ],
        "agent0": [
            "backendai_run_duration_seconds_count{end=completed,framework=langgraph,provider=openai}",
            "backendai_first_token_seconds_count{model=gpt-4o-mini,provider=openai}",
            "backendai_provider_call_duration_seconds_count{code=ok,provider=openai}",
        ],
        "speech0": ["backendai_provider_call_duration_seconds_count{code=ok,provider=openai}"],
        "translate0": ["backendai_provider_call_duration_seconds_count{code=ok,provider=openai}"],
    }
    before = {process: scraped(stack, process) for process in moved}
    async with stack.user() as alice:
        assert (await alice.say(await alice.new_session())).status_code == 201
        await spend_otherwise(alice)
    for process, samples in moved.items():

        async def counted(process: str = process, samples: list[str] = samples) -> bool:
            now = scraped(stack, process)
            return all(now.get(sample, 0) > before[process].get(sample, 0) for sample in samples)

        await until(counted, saying=f"{process} counts {samples}")


async def spend_otherwise(user: User) -> None:
    """Transcribe and translate something, both with words to look for."""
    user.stack.script("whisper", default={"text": f"{CANARY}-transcript"})
    file = {"audio_file": (f"{CANARY}-filename.mp3", tone("mp3"))}
    heard = await user.post("/api/transcribe-audio/", files=file, data={"workspace_id": user.workspace})
    assert heard.status_code == 200, heard.text
    answer = json.dumps({"source": "en", "translated_text": f"{CANARY}-translated"})
    user.stack.script("openai", next=[{"text": answer}])
    query = {"text": f"{CANARY} {user.workspace}", "target": "de"}
    translated = await user.get(f"/api/workspaces/{user.workspace}/translate/", params=query)
    assert translated.status_code == 200, translated.text


async def test_the_depths_of_the_queue_are_told(watched: Watched) -> None:
    samples = scraped(watched.stack, "chat0")
    for state in ("queued", "running", "unsettled"):
        assert f"backendai_tasks{{state={state}}}" in samples
    assert "backendai_oldest_queued_task_seconds{}" in samples
    assert "backendai_held_credits{}" in scraped(watched.stack, "billing0")
    told = {
        process: scraped(watched.stack, process).get("backendai_nats_connected{}") for process in watched.stack.ops_urls
    }
    connected = {process: value for process, value in told.items() if value is not None}
    assert connected == {"gateway0": 1, "chat0": 1, "agent0": 1}


async def test_no_word_of_a_conversation_and_no_secret_is_in_logs_metrics_or_traces(watched: Watched) -> None:
    stack, token = watched.stack, ""
    async with stack.user(f"{CANARY}-user") as alice:
        token = alice.token
        session = await alice.new_session(name=f"{CANARY}-name", system_prompt=f"{CANARY}-system")
        stack.script("openai", next=[{"text": f"{CANARY}-answer"}])
        assert (await alice.say(session, SENT, Idempotency_Key=f"{CANARY}-key")).status_code == 201
        assert (await alice.get(f"{alice.chats}?search={CANARY}-search")).status_code == 200
        await spend_otherwise(alice)
        for behaviour in ({"error": "invalid_key"}, {"error": "context_too_long"}, {"refusal": CANARY}):
            stack.script("openai", default=behaviour)
            await alice.say(session, SENT)
        stack.script("openai", default={})
        await alice.post(alice.messages(session), content=f'{{"role":"user","content":"{CANARY}', headers=JSON)
        await alice.post(alice.messages(session), json={"role": f"{CANARY}-role", "content": SENT})
        await alice.post(alice.chats, json={f"{CANARY}-field": 1})
        await alice.get(f"/api/{CANARY}-path/?{CANARY}-query=1")
        await alice.request(f"{CANARY}".upper(), alice.chats)
        await refused_by_the_database(watched, alice, session)
        trace_id = "cccccccccccccccccccccccccccccccc"
        assert (await alice.say(await alice.new_session(), SENT, **trace_parent(trace_id))).status_code == 201
    await watched.trace(trace_id, ("agent", "run"))  # then all that was before it has been exported, too
    places = {path.name: path.read_bytes() for path in stack.folder.glob("*.log")}
    places |= {process: ask(stack, process, "/metrics").content for process in stack.ops_urls}
    places["traces"] = b"".join(watched.collector.raw)
    assert all(places[f"{service}0.log"] and places[f"{service}0"] for service in SERVICES)
    found = {
        (place, word)
        for place, content in places.items()
        for word in (CANARY, CANARY.upper(), token, *SECRETS)
        if word.encode() in content
    }
    assert not found


async def refused_by_the_database(watched: Watched, user: User, session: str) -> None:
    """Run into a defect of ours whose error quotes the whole row that could not be stored."""
    with psycopg.connect(watched.database_url, autocommit=True) as connection:
        connection.execute(
            "alter table chat.messages add constraint canary check (content not like '%poison%') not valid"
        )
        try:
            response = await user.say(session, f"{SENT} poison")
        finally:
            connection.execute("alter table chat.messages drop constraint canary")
    assert response.status_code == 500
    assert '"CheckViolation"' in watched.stack["chat0"].log.read_text()


async def test_liveness_and_readiness_of_every_process_can_be_asked_for(watched: Watched) -> None:
    for process in watched.stack.ops_urls:
        answers = [ask(watched.stack, process, path).status_code for path in ("/healthz", "/readyz", "/")]
        assert answers == [200, 200, 404], process


async def test_a_gateway_without_chat_is_alive_and_not_ready(watched: Watched) -> None:
    stack = watched.stack
    stack["chat0"].kill()

    async def unready() -> bool:
        return ask(stack, "gateway0", "/readyz").status_code == 503

    await until(unready, saying="the gateway is not ready")
    assert ask(stack, "gateway0", "/healthz").status_code == 200
    stack["chat0"].start()
    stack.wait_until_ready()
