/** Creates, changes, sends, follows, translates and pages, with types from docs/openapi.json alone: no cast, no `any`. */
import createClient, { type Middleware } from "openapi-fetch";
import { readFile } from "node:fs/promises";

import type { components, paths } from "./schema.js";

type Problem = components["schemas"]["Problem"];
type Session = components["schemas"]["SessionOut"];

const [url, token, workspace_id, recording] = process.argv.slice(2);
if (!url || !token || !workspace_id || !recording) {
  throw new Error("usage: client.js URL TOKEN WORKSPACE RECORDING");
}

const authentication: Middleware = {
  onRequest({ request }) {
    request.headers.set("Authorization", `Bearer ${token}`);
    return request;
  },
};
const api = createClient<paths>({ baseUrl: url });
api.use(authentication);

function failure(problem: Problem): Error {
  return new Error(`${problem.status} ${problem.code}: ${problem.detail} ${JSON.stringify(problem.errors ?? [])}`);
}

async function create(workspace_id: string): Promise<Session> {
  const { data, error, response } = await api.POST("/api/workspaces/{workspace_id}/chats/", {
    params: { path: { workspace_id }, header: { "Idempotency-Key": crypto.randomUUID() } },
    body: { name: "From TypeScript", temperature: 0.2 },
  });
  if (error) throw failure(error);
  console.log(response.status, data.name, data.ai_provider, data.my_permission);
  return data;
}

async function change(workspace_id: string, session_id: string): Promise<void> {
  const { data, error } = await api.PATCH("/api/workspaces/{workspace_id}/chats/{session_id}/", {
    params: { path: { workspace_id, session_id }, header: { "If-Match": "*" } },
    body: { name: "Renamed", status: "active", system_prompt: null },
  });
  if (error) throw failure(error);
  console.log(data.name);
}

async function send(workspace_id: string, session_id: string): Promise<void> {
  const { data, error, response } = await api.POST("/api/workspaces/{workspace_id}/chats/{session_id}/messages/", {
    params: { path: { workspace_id, session_id } },
    body: { role: "user", content: "What is the capital of France?" },
  });
  if (error) throw failure(error);
  if (typeof data === "string") throw new Error("events, which were not asked for");
  if ("ai_messages" in data) {
    const answer: string = data.ai_messages.map((message) => message.content).join("");
    console.log(response.status, answer, (data.usage?.output_tokens ?? 0) > 0);
  } else {
    const status: "processing" = data.status;
    throw new Error(`${status} ${data.task_id}`);
  }
}

/** Answers with a task, and waits for its end. */
async function poll(workspace_id: string, session_id: string): Promise<void> {
  const sent = await api.POST("/api/workspaces/{workspace_id}/chats/{session_id}/messages/", {
    params: { path: { workspace_id, session_id }, header: { Prefer: "respond-async" } },
    body: { content: "And of Spain?" },
  });
  if (sent.error) throw failure(sent.error);
  if (typeof sent.data === "string") throw new Error("events, which were not asked for");
  const { task_id } = sent.data;
  for (;;) {
    const { data, error } = await api.GET(
      "/api/workspaces/{workspace_id}/chats/{session_id}/messages/agent-task-status/{task_id}/",
      { params: { path: { workspace_id, session_id, task_id } } },
    );
    if (error) throw failure(error);
    if (typeof data === "string") throw new Error("events, which were not asked for");
    if (data.status !== "processing") {
      console.log(data.status);
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The same operation, answered by events. */
async function stream(workspace_id: string, session_id: string): Promise<void> {
  const { data, error } = await api.POST("/api/workspaces/{workspace_id}/chats/{session_id}/messages/", {
    params: { path: { workspace_id, session_id } },
    headers: { Accept: "text/event-stream" },
    body: { content: "And of Italy?" },
    parseAs: "stream",
  });
  if (error) throw failure(error);
  if (data === null) throw new Error("no stream");
  const text = await new Response(data).text();
  console.log(text.split("\n").filter((line) => line.startsWith("event: ")).at(-1));
}

async function page(workspace_id: string): Promise<void> {
  const { data, error } = await api.GET("/api/workspaces/{workspace_id}/chats/", {
    params: { path: { workspace_id }, query: { limit: 5, scope: "owned", status: "active" } },
  });
  if (error) throw failure(error);
  const next: string | null = data.next;
  console.log(data.results.length, next);
}

async function upload(workspace_id: string, file: string): Promise<void> {
  const audio_file = new Blob([await readFile(file)], { type: "audio/mpeg" });
  const form = new FormData();
  form.set("workspace_id", workspace_id);
  form.set("audio_file", audio_file, "recording.mp3");
  const { data, error, response } = await api.POST("/api/transcribe-audio/", {
    body: { audio_file, workspace_id },
    bodySerializer: () => form,
  });
  if (error) throw failure(error);
  console.log(response.status, data.text, response.headers.get("X-Speech-Model"));
}

async function fail(workspace_id: string): Promise<void> {
  const { error, response } = await api.POST("/api/workspaces/{workspace_id}/chats/", {
    params: { path: { workspace_id } },
    body: { temperature: 3 },
  });
  if (!error) throw new Error("nothing is wrong");
  console.log(response.status, error.code, error.errors?.[0]?.pointer);
}

const session = await create(workspace_id);
await change(workspace_id, session.id);
await send(workspace_id, session.id);
await poll(workspace_id, session.id);
await stream(workspace_id, session.id);
await page(workspace_id);
await upload(workspace_id, recording);
await fail(workspace_id);
