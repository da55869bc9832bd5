"""The demonstration: a session that is ready to be asked, and the banner that says how."""

import json
from urllib.request import getproxies

import httpx

from deploy.local.output import BOLD, coloured
from deploy.local.processes import default_model
from deploy.local.settings import Settings
from deploy.local.state import DataDirectory
from deploy.local.tokens import DEMO_USER, make_token

QUESTION = "What is the capital of France?"


def gateway_url(settings: Settings, number: int = 0) -> str:
    """Where a browser on this machine finds a gateway."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.gateway_host, settings.gateway_host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway_port + number}"


async def banner(settings: Settings, data: DataDirectory) -> str:
    """What is printed once everything answers."""
    url = gateway_url(settings)
    lines = [("Gateway", url), ("API docs", f"{url}/api/docs"), ("Model", " / ".join(default_model(settings)))]
    if settings.transcriber == "local" and not settings.speech_local_base_url:
        lines.append(("Speech", "a small recogniser of English that guesses; OPENAI_API_KEY makes it good"))
    if settings.translator == "placeholder":
        lines.append(("Translate", "a placeholder; OPENAI_API_KEY or GOOGLE_API_KEY makes it real"))
    if settings.ops_listen:
        lines.append(
            ("Metrics", f"http://{settings.ops_listen}/metrics of the first gateway, the next ports for the rest")
        )
    if settings.auth_jwks_url:
        return _framed(lines, f"Tokens come from the issuer whose keys are at {settings.auth_jwks_url}.")
    workspace = str(data.demo_workspace)
    token = make_token(settings, data, user=DEMO_USER, workspace=workspace, role="owner")
    lines += [("Workspace", f"{workspace}, user {DEMO_USER}, owner"), ("Token", token)]
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False) as client:
        # Some vendors' models refuse a temperature; the small local one needs it to be right.
        model: dict[str, object] = {"temperature": 0} if default_model(settings)[0] == "local" else {}
        return _framed(lines, await _invitation(client, data, workspace, model))


async def _invitation(client: httpx.AsyncClient, data: DataDirectory, workspace: str, model: dict[str, object]) -> str:
    chats = f"/api/workspaces/{workspace}/chats/"
    session = await _unused_session(client, data, chats)
    if session is None:
        new = await client.post(chats, json={"name": "Demonstration", **model})
        if new.status_code != httpx.codes.CREATED:
            return f"No session could be made for you to try: {_reason(new)}"
        session = data.demo_session = new.json()["id"]
    body = json.dumps({"role": "user", "content": QUESTION})
    # curl, unlike this system, sends requests for loopback to a proxy too.
    direct = "--noproxy '*' " if getproxies() else ""
    return (
        "Ask something:\n\n"
        f"curl {direct}-w '\\n' {client.base_url.join(chats)}{session}/messages/ \\\n"
        f"  -H 'Authorization: {client.headers['Authorization']}' \\\n"
        f"  -H 'Content-Type: application/json' -d '{body}'"
    )


async def _unused_session(client: httpx.AsyncClient, data: DataDirectory, chats: str) -> str | None:
    """The session of an earlier banner that nobody wrote to, so that starts leave no trail of empty ones."""
    if data.demo_session is None:
        return None
    known = await client.get(f"{chats}{data.demo_session}/")
    return data.demo_session if known.status_code == httpx.codes.OK and not known.json()["message_count"] else None


def _reason(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
        return str(problem.get("detail") or problem["title"])
    except (ValueError, KeyError):
        return f"the gateway answered {answer.status_code}"


def _framed(lines: list[tuple[str, str]], invitation: str) -> str:
    facts = "\n".join(f"  {coloured(f'{name:<10}', BOLD)} {value}" for name, value in lines)
    title, farewell = coloured("BackendAI Chat is running", BOLD), "Ctrl-C stops everything; the data stays."
    return f"\n  {title}\n\n{facts}\n\n{invitation}\n\n  {farewell}\n"
