"""An example of each call: what a client sends and what a real daemon answers.

They come from one conversation over HTTP. Identifiers, times, paths and secrets, which differ each time,
are replaced by short and stable values.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import anyio
import httpx
from attrs import define, evolve, field, frozen
from cryptography.hazmat.primitives.asymmetric import ec
from push_service import Browser
from serving import PUSH_SERVICE, serving
from websockets.asyncio.client import connect

from agent_orchestrator.domain.model import Session, Thread
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.operations.session_files import LINES
from agent_orchestrator.operations.takeovers import Program
from agent_orchestrator.ports.channel import NoticeContent, SendFailed, Target
from agent_orchestrator.ports.runner import Handover, RunContext
from agent_orchestrator.ports.store import Store
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.testing.scripted import ScriptedRunner
from agent_orchestrator.testing.stores.samples import a_notice

_WIDTH: Final = 112
_FULL: Final = ("create_session", "send_message", "get_request", "list_events", "create_token")
"""The examples that show an object with all its fields; the others show only some."""

_KEPT: Final = (
    "id", "status", "run_id", "parent_session_id", "parent_run_id", "provider", "kind", "text",
    "result", "decision", "answer",
)  # fmt: skip

_THREAD: Final = "0199f3a0-5d1e-7c40-9a55-1f6f3f7b8c21"

_TOKEN: Final = "the-daemon's-own-token-of-32-characters"


@define
class Exchange:
    """One request and its answer, as the page shows them."""

    request: str
    body: str | None
    status: int
    answer: Any


@define
class Conversation:
    """Calls a daemon and records the requests and answers.

    :param found: by operation, the successful call, and then the refused ones.
    """

    http: httpx.AsyncClient
    directory: Path
    store: Store
    found: dict[str, list[Exchange]] = field(factory=dict)
    _names: dict[str, str] = field(factory=dict)

    async def __call__(self, name: str, /, **values: Any) -> Any:
        """Call an operation by its name, and return the JSON of the answer."""
        [operation] = [one for one in OPERATIONS if one.name == name]
        path = re.sub(r"{(\w+)}", lambda part: values.pop(part[1]), operation.path)
        if operation.takes_lines:
            lines = values.pop("lines")
            response = await self.http.post(
                path, params=values, content=lines, headers={"Content-Type": LINES}
            )
            query = str(httpx.QueryParams(values))
            request = f"POST {path}" + (f"?{query}" if query else "")
            body = None if response.is_error else '{"kind": "header", …}\n…'
        elif operation.is_mutation:
            response = await self.http.request(operation.method, path, json=values)
            request, body = f"{operation.method} {path}", json.dumps(values, ensure_ascii=False)
        else:
            response = await self.http.get(path, params=values)
            query = str(httpx.QueryParams(values))
            request, body = f"GET {path}" + (f"?{query}" if query else ""), None
        is_file = operation.answers_lines and response.is_success
        answer: Any = response.text if is_file else response.json()
        kept = self.found.setdefault(name, [])
        refused = response.status_code >= 400
        if refused or not any(one.status < 400 for one in kept):
            kept.append(
                Exchange(
                    self.plain(request),
                    None if body is None else self.plain(body),
                    response.status_code,
                    json.loads(self.plain(json.dumps(answer))),
                )
            )
        return answer

    def plain(self, text: str) -> str:
        """Return a text with stable values instead of those that differ each time."""
        text = text.replace(str(self.directory), "/srv/project")
        text = re.sub(r"\b(ses|run|msg|req|dmn|tok|ntc|psh)_[0-9a-v]{26}\b", self._named, text)
        text = re.sub(r"\b(apt|ads)_[\w-]{20,}", r"\1_…", text)
        text = re.sub(r'"code": "[2-9A-Z]{8}"', '"code": "K7PM3XQ2"', text)
        text = re.sub(r"\b[0-9a-f]{64}\b", "9f86d081…", text)
        text = re.sub(r'"B[\w-]{86}"', '"BCVxsr7N…"', text)
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "2026-01-02T15:04:05.000000Z", text)
        text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8765", text)
        text = re.sub(r'"(pid|size|schema_version)": \d+', r'"\1": 42', text)
        text = re.sub(r"\(process \d+\)", "(process 42)", text)
        text = re.sub(
            r'"epoch": ?"[0-9a-f]{12}"', lambda found: found[0][:-13] + '5f0c9a31d2e4"', text
        )
        text = re.sub(
            r'"machine": "[^"]*", "user": "[^"]*"', '"machine": "desk", "user": "ann"', text
        )
        text = re.sub(r'"process_start_id": "[^"]+"', '"process_start_id": "9f0c…/4711"', text)
        return re.sub(r'"uptime_s": [\d.]+', '"uptime_s": 60.0', text)

    def known_as(self, name: str) -> str:
        """Return the identifier that is shown under this name."""
        return next(there for there, shown in self._names.items() if shown == name)

    def _named(self, found: re.Match[str]) -> str:
        kind = found[1]
        same = sum(name.startswith(f"{kind}_") for name in self._names.values())
        return self._names.setdefault(found[0], f"{kind}_{same + 1}")


async def hold(conversation: Conversation) -> None:
    """Make every call once, and some that are refused."""
    call = conversation
    here = str(conversation.directory)

    session = (await call("create_session", title="typos", cwd=here, idempotency_key="typos"))[
        "session"
    ]["id"]
    await call("create_session", title="other", cwd=here, idempotency_key="typos")
    await call("create_session", title=7)
    sent = await call("send_message", session_id=session, text="Fix the typos", idempotency_key="1")
    run = sent["run"]["id"]
    await call("wait_run", run_id=run, timeout_s=30)
    await call("get_run", run_id=run)
    await call("get_run", run_id="run_00000000000000000000000000")
    await call("diagnose_run", run_id=run)
    await call("list_events", session_id=session, cursor=4, limit=2)
    await call("list_events", session_id=session, cursor=99)
    await call("list_messages", session_id=session, limit=1)

    held = (await call("create_run", session_id=session, provider="manual", text="By hand"))["run"]
    await call("transition_run", run_id=held["id"], to_status="running")
    await call("send_message", session_id=session, text="Now", when_busy="reject")
    child = await call(
        "spawn_from_run", run_id=held["id"], task="Look for others", provider="manual"
    )
    child_run = child["run"]["id"]
    asked = await call(
        "reply_parent",
        run_id=child_run,
        text="May I: rm -rf ./tmp-cache",
        request_kind="approval_request",
    )
    request = asked["request"]["id"]
    await call("list_requests", status="pending", root_session_id=session)
    await call("get_request", request_id=request)
    await call("extend_request", request_id=request, expires_in_s=7200)
    await call("resolve_request", request_id=request, decision="approve", text="Only there")
    await call("resolve_request", request_id=request, decision="deny")
    await call(
        "send_to_session", session_id=child["session"]["id"], text="Go on", from_run_id=held["id"]
    )
    await call("get_tree", session_id=child["session"]["id"])
    await call("spawn_from_session", session_id=session, task="Check the links", provider="manual")
    await call("cancel_run", run_id=held["id"], reason="not needed")
    await call("transition_run", run_id=run, to_status="running")
    await call("list_runs", session_id=session, status="completed")

    await call("set_access", session_id=session, grants=[{"principal": "bob", "role": "reader"}])
    await call("get_access", session_id=session)
    link = await call("create_link", session_id=session, expires_in_s=3600)
    await call("list_links", session_id=session)
    await call("revoke_link", session_id=session, token_id=link["token"]["id"])
    await call("update_session", session_id=session, status="closed")
    await call("close_session", session_id=session, cascade=True)
    await call("send_message", session_id=session, text="More")
    await call("get_session", session_id=session)
    await call("get_diff", session_id=session)
    await call("mark_seen", session_id=session, seq=12)
    await call("list_sessions", order="newest", q="typos", activity="true", limit=1)
    await call("search", q="fix typ*", kind="message")
    await call("search", q="***")

    await call("adopt_session", provider="codex", cwd=here)
    adopted = await call("adopt_session", provider="codex", thread_id=_THREAD)
    await call("wait_run", run_id=adopted["run"]["id"], timeout_s=30)
    await call("adopt_session", provider="codex", thread_id=_THREAD)
    handed, process = adopted["session"]["id"], os.getpid()
    await call("attach_session", session_id=handed, pid=process, process_start_id="another's")
    started = {"pid": process, "process_start_id": process_start_id(process)}
    await call("attach_session", session_id=handed, **started)
    await call("attach_session", session_id=handed, **started)
    await call("close_session", session_id=handed, cascade=True)
    await call("prune_session", session_id=handed, retain_events=2)
    await call("list_events", session_id=handed, cursor=1)
    file = await call("export_session", session_id=handed)
    await call("import_session", lines=file)
    await call("import_session", lines=file[:-99], new_id="true")
    await call("import_session", lines=file, new_id="true")

    await call("status")
    await call("back_up", path=f"{here}/backup.db")
    await call("back_up", path=f"{here}/backup.db")
    await call("check_store")
    with patch("os.geteuid", return_value=1000):  # whichever user makes the page
        await call("doctor")
    token = await call("create_token", name="ann", scopes=["read", "write"], expires_in_s=86400)
    await call("list_tokens")
    await call("revoke_token", token_id=token["token"]["id"])
    invited = await call("add_device", name="phone", scopes=["read", "approve"])
    await call("claim_device", code=invited["code"])
    await call("claim_device", code=invited["code"])
    await call("list_devices")
    await call("revoke_device", token_id=invited["device"]["id"])
    await call("list_audit", limit=1)
    browser = Browser(f"{PUSH_SERVICE}/x", ec.derive_private_key(7, ec.SECP256R1()), b"x" * 16)
    await call("get_push_key")
    device = (await call("subscribe_push", **browser.fields, name="phone"))["subscription"]
    await call("subscribe_push", **{**browser.fields, "endpoint": "https://127.0.0.1/x"})
    await call("list_push")
    shown = a_notice(
        run,
        session_id=session,
        target=device["id"],
        principal=device["principal"],
        state="sent",
        next_at=None,
    )
    await conversation.store.transact(lambda tx: tx.add_notice(shown))
    await call("report_notice", notice_id=shown.id, state="shown")
    await call(
        "update_push",
        subscription_id=device["id"],
        quiet_hours="22:00-07:00",
        time_zone="Europe/Berlin",
    )
    await call("unsubscribe_push", subscription_id=device["id"])
    [failed] = (await call("test_notice", target="phone"))["notices"]
    await call("test_notice", target="fax")
    await call("get_notice", notice_id=failed["id"], wait_s=30)
    await call("list_notices", state="failed")
    await call("retry_notice", notice_id=failed["id"])


@frozen
class Said:
    """The whole conversation.

    :param calls: by operation.
    :param stream: how a stream begins.
    :param others: by ``METHOD /path``, the text of the calls that are not operations.
    """

    calls: Mapping[str, list[Exchange]]
    stream: str
    others: Mapping[str, str]


class _Phone:
    """A channel that cannot send."""

    withdraws = False

    async def send(self, content: NoticeContent) -> None:
        raise SendFailed("answered 403", is_final=True)


@cache
def said() -> Said:
    """Hold the conversation, once."""

    async def main(directory: Path) -> Said:
        agent = Agent()
        with anyio.fail_after(120):
            agents = {"forever": agent, "codex": Codex()}
            phone = Target(channel=_Phone(), kind="ntfy", timeout_s=10, events=frozenset())
            async with serving(
                directory, tokens=(_TOKEN,), agents=agents, targets={"phone": phone}
            ) as server:
                call = Conversation(server.client, directory, server.store)
                await hold(call)
                session = call.found["get_session"][0].answer["session"]
                start = await beginning(call, call.known_as(session["id"]), session["last_seq"] - 1)
                return Said(call.found, start, await others(call, agent))

    with tempfile.TemporaryDirectory() as place:
        return anyio.run(main, Path(place).resolve())


async def beginning(call: Conversation, session_id: str, cursor: int) -> str:
    """Return how a stream begins, as server-sent events and over a WebSocket."""
    query = f"/stream?sessionId={session_id}&cursor={cursor}"
    text = ""
    async with call.http.stream("GET", query) as response:
        async for chunk in response.aiter_text():
            text += chunk
            frames = text.split("\n\n")
            if len(frames) > 2:
                break
    url = str(call.http.base_url.join(query)).replace("http:", "ws:")
    headers = {"Authorization": call.http.headers["Authorization"]}
    async with connect(url, additional_headers=headers, proxy=None) as socket:
        messages = [str(await socket.recv()) for _ in range(2)]
    said = [f"GET {query}", *frames[:2], f"WebSocket {query}", *messages]
    return call.plain("\n\n".join(said))


@define
class Agent:
    """An agent that keeps its token and waits until it may end."""

    token: str = ""
    came: anyio.Event = field(factory=anyio.Event)
    left: anyio.Event = field(factory=anyio.Event)

    async def __call__(self, context: RunContext) -> str:
        self.token = context.env["AGENTCTL_AUTH_TOKEN"]
        self.came.set()
        await self.left.wait()
        return "done"


class Codex(ScriptedRunner):
    """Stands for codex, whose program the example shows."""

    async def hand_over(self, session: Session, thread: Thread, env: Mapping[str, str]) -> Handover:
        handed = await super().hand_over(session, thread, env)
        argv = ("/usr/bin/codex", "resume", "--no-daemon", thread.id)
        program = Program(argv, session.cwd, {"CODEX_HOME": "/home/ann/.codex"})
        return evolve(handed, program=program)


async def others(call: Conversation, agent: Agent) -> Mapping[str, str]:
    """Make the calls that are not operations; return them as the page shows them."""
    texts = {}
    for path in ("/health", "/metrics", "/openapi.json"):
        answer = await call.http.get(path)
        assert answer.status_code == 200
        if path == "/health":
            body = "\n".join(_wrapped(call.plain(json.dumps(answer.json()))))
        elif path == "/metrics":
            lines = answer.text.splitlines()
            first = next(
                n for n, line in enumerate(lines) if line.startswith("# HELP agentd_queue")
            )
            body = "\n".join([*lines[first : first + 8], "…"])
        else:
            described = answer.json()
            paths = {"/health": {"get": {"operationId": "health", "…": None}}, "…": None}
            assert described["paths"]["/health"]["get"]["operationId"] == "health"
            shown = json.dumps({"openapi": described["openapi"], "paths": paths, "…": None})
            body = json.dumps(json.loads(shown), ensure_ascii=False).replace('"…": null', "…")
        kind = answer.headers["Content-Type"]
        texts[f"GET {path}"] = _plainly(call, f"GET {path}", f"200 {kind}", body)

    made = (await call("create_session", provider="forever"))["session"]["id"]
    run = (await call("send_message", session_id=made, text="work"))["run"]["id"]
    await agent.came.wait()
    headers = {"Accept": "application/json, text/event-stream"}
    list_tool = {"name": "session_list", "arguments": {}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": list_tool}
    bearer = headers | {"Authorization": f"Bearer {agent.token}"}
    answer = await call.http.post("/mcp", json=message, headers=bearer)
    refused = await call.http.post("/mcp", json=message, headers=headers)
    agent.left.set()
    await call("wait_run", run_id=run, timeout_s=30)
    body_text = call.plain(json.dumps(answer.json(), ensure_ascii=False))
    body_text = "\n".join(_wrapped(body_text))
    error = refused.json()["error"]
    text = _plainly(
        call,
        "POST /mcp\nAuthorization: Bearer art_…\nAccept: application/json, text/event-stream\n"
        + json.dumps(message),
        str(answer.status_code),
        body_text,
    )
    text += (
        f"\n\nWith a token that is no run's: {refused.status_code} `{error['code']}`,"
        f" “{error['message']}”."
    )
    return texts | {"POST /mcp": text}


def _plainly(call: Conversation, request: str, head: str, body: str) -> str:
    return f"```text\n{request}\n\n{head}\n{call.plain(body)}\n```"


def example(name: str) -> str:
    """Return the example of an operation, as the page shows it.

    :raises LookupError: if it has none.
    """
    done, *others = sorted(said().calls[name], key=lambda one: one.status)
    assert done.status < 400, f"{name}: {done.answer}"
    lines = [done.request]
    if done.body not in (None, "{}"):
        lines += _wrapped(str(done.body))
    if isinstance(done.answer, str):
        shown = [json.loads(line) for line in done.answer.splitlines()]
        parts = ["\n".join(_wrapped(_as_text(_shortened(shown[at])))) for at in (0, 1, -2, -1)]
        lines += ["", str(done.status), *parts]
    else:
        answer = done.answer if name in _FULL else _shortened(done.answer)
        lines += ["", str(done.status), *_wrapped(_as_text(answer))]
    text = "```text\n" + "\n".join(lines) + "\n```"
    for one in others:
        error = one.answer["error"]
        sent = f" with `{one.body}`" if one.body is not None else ""
        text += f"\n\n`{one.request}`{sent}: {one.status} `{error['code']}`, “{error['message']}”."
    return text


def _as_text(answer: Any) -> str:
    return json.dumps(answer, ensure_ascii=False).replace('"…": null', "…")


def _shortened(value: Any) -> Any:
    """Keep only the distinguishing fields of sessions, messages, runs and requests."""
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    if not isinstance(value, dict):
        return value
    if str(value.get("id")).startswith(("ses_", "msg_", "run_", "req_")):
        usual = (None, "message")  # the usual kind of a run
        return {key: value[key] for key in _KEPT if value.get(key) not in usual} | {"…": None}
    return {key: _shortened(one) for key, one in value.items()}


def stream() -> str:
    """Return the beginning of a stream, in both forms, as it comes over the wire."""
    return f"```text\n{said().stream}\n```"


def _wrapped(text: str) -> list[str]:
    """Break JSON after its commas only, so that it stays JSON."""
    lines, line = [], ""
    for part in re.split(r"(?<=, )", text):
        if line and len(line) + len(part.rstrip()) > _WIDTH:
            lines.append(line.rstrip())
            line = " "
        line += part
    return [*lines, line]
