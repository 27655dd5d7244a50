"""Every operation and stream, tried with tokens of runs in every relation to the target."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from attrs import define
from serving import ADMIN, sse_reader
from waiting_agents import Agents
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from agent_orchestrator.domain.audit import AuditEntry, first_break
from agent_orchestrator.operations import OPERATIONS

pytestmark = pytest.mark.anyio


@define
class Tree:
    """The target (``own``: its session, its run and a request of it) and those around it."""

    agents: Agents
    runs: dict[str, str]
    sessions: dict[str, str]
    request: str

    @property
    def own(self) -> dict[str, str]:
        return {
            "session_id": self.sessions["own"],
            "run_id": self.runs["own"],
            "request_id": self.request,
            "token_id": "tok_06h08j09d6l4pm2jd29lpef3k0",
            "subscription_id": "psh_06h08j09d6l4pm2jd29lpef3k0",
            "notice_id": "ntc_06h08j09d6l4pm2jd29lpef3k0",
        }

    async def audit(self) -> list[AuditEntry]:
        return await self.agents.server.store.read(lambda view: view.audit(after=0, limit=1000))

    def client(self, attacker: str) -> httpx.AsyncClient:
        token = (
            "art_" + "A" * 43 if attacker == "garbage" else self.agents.token(self.runs[attacker])
        )
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(base_url=self.agents.server.url, headers=headers, timeout=60)


@pytest.fixture
async def tree(agents: Agents) -> AsyncIterator[Tree]:
    runs: dict[str, str] = {}
    sessions: dict[str, str] = {}

    async def spawn(name: str, parent: str) -> None:
        answer = await agents.server.client.post(
            f"/runs/{runs[parent]}/spawn", json={"task": "work"}
        )
        assert answer.status_code == 201, answer.text
        sessions[name] = answer.json()["session"]["id"]
        runs[name] = await agents.at_work(answer.json()["run"]["id"])

    for name in ("parent", "other"):
        sessions[name] = await agents.server.session("agent")
        runs[name] = await agents.start(sessions[name])
    await spawn("own", "parent")
    runs["ended"] = runs["own"]
    await agents.end(runs["ended"])
    runs["own"] = await agents.start(sessions["own"])
    await spawn("sibling", "parent")
    await spawn("child", "own")
    question = {"text": "May I?", "request_kind": "approval_request"}
    answer = await agents.server.client.post(f"/runs/{runs['own']}/reply-parent", json=question)
    yield Tree(agents, runs, sessions, answer.json()["request"]["id"])
    for name in ("own", "child", "sibling", "parent", "other"):
        await agents.server.client.post(f"/runs/{runs[name]}/cancel")


ATTACKERS = ("own", "parent", "child", "sibling", "other", "ended", "garbage")

TOKENS, OPEN = (ADMIN,), ()
WITH_TOKENS = pytest.mark.parametrize("agents", [TOKENS], indirect=True)
"""The token of a run works whether people need tokens or not."""

WITH_OR_WITHOUT_TOKENS = pytest.mark.parametrize(
    ("agents", "attacker"),
    [
        *((TOKENS, one) for one in ATTACKERS),
        *((OPEN, one) for one in ("own", "sibling", "garbage")),
    ],
    indirect=["agents"],
)

READ = {"own": 200, "parent": 200}
NOBODY: dict[str, int] = {"own": 403, "parent": 403}
NO_AGENT = dict.fromkeys(ATTACKERS, 403)
LISTED = dict.fromkeys(ATTACKERS, 200)

Row = tuple[dict[str, Any], dict[str, int]]

ROWS: dict[str, Row] = {
    "create_session": ({"title": "x"}, NO_AGENT),
    "list_sessions": ({}, LISTED),
    "get_session": ({}, READ),
    "get_diff": ({}, NO_AGENT),
    "mark_seen": ({"seq": 1}, NO_AGENT),
    "create_link": ({}, NOBODY),
    "list_links": ({}, NOBODY),
    "revoke_link": ({}, NOBODY),
    "update_session": ({"title": "mine"}, NOBODY),
    "prune_session": ({"through": 1}, NO_AGENT),
    "export_session": ({}, NO_AGENT),
    "import_session": ({}, NO_AGENT),
    "close_session": ({}, NOBODY),
    "attach_session": ({"pid": 1, "process_start_id": "x"}, NO_AGENT),
    "adopt_session": ({}, NO_AGENT),
    "get_access": ({}, NOBODY),
    "set_access": ({"grants": [{"principal": "bob", "role": "owner"}]}, NOBODY),
    "send_message": ({"text": "x"}, NOBODY),
    "list_messages": ({}, READ),
    "spawn_from_session": ({"task": "x"}, NOBODY),
    "spawn_from_run": ({"task": "x"}, {"own": 201, "parent": 403}),
    "send_to_session": ({"text": "x"}, {"own": 403, "parent": 201}),
    "get_tree": ({}, READ),
    "reply_parent": ({"text": "x"}, {"own": 201, "parent": 403}),
    "list_requests": ({}, LISTED),
    "get_request": ({}, READ),
    "extend_request": ({"expires_in_s": 60}, {"own": 403, "parent": 200}),
    "resolve_request": ({"decision": "approve"}, {"own": 403, "parent": 200}),
    "list_events": ({}, READ),
    "search": ({"q": "x"}, LISTED),
    "create_run": ({"text": "x"}, NOBODY),
    "list_runs": ({}, LISTED),
    "get_run": ({}, READ),
    "transition_run": ({"to_status": "canceled"}, NOBODY),
    "wait_run": ({"timeout_s": 0, "until": "attention"}, READ),
    "diagnose_run": ({}, READ),
    "status": ({}, NO_AGENT),
    "list_audit": ({}, NO_AGENT),
    "create_token": ({"name": "mine"}, NO_AGENT),
    "list_tokens": ({}, NO_AGENT),
    "revoke_token": ({}, NO_AGENT),
    "add_device": ({}, NO_AGENT),
    "list_devices": ({}, NO_AGENT),
    "revoke_device": ({}, NO_AGENT),
    "list_notices": ({}, NO_AGENT),
    "get_notice": ({}, NO_AGENT),
    "test_notice": ({}, NO_AGENT),
    "retry_notice": ({}, NO_AGENT),
    "get_push_key": ({}, NO_AGENT),
    "list_push": ({}, NO_AGENT),
    "subscribe_push": ({"endpoint": "https://x", "p256dh": "x", "auth": "x"}, NO_AGENT),
    "update_push": ({}, NO_AGENT),
    "unsubscribe_push": ({}, NO_AGENT),
    "report_notice": ({"notice_id": "ntc_x", "state": "shown"}, NO_AGENT),
    "back_up": ({"path": "/nowhere/copy.db"}, NO_AGENT),
    "check_store": ({}, NO_AGENT),
    "doctor": ({}, NO_AGENT),
    "cancel_run": ({}, {"own": 403, "parent": 202}),
}
"""For each operation the fields sent with the target's ids, and the status by the relation of
the caller: 404 if not listed. In this order: the last one ends the target."""


def test_every_operation_has_a_row_of_expected_statuses() -> None:
    assert set(ROWS) == {operation.name for operation in OPERATIONS if not operation.public}


def expected(statuses: dict[str, int], attacker: str) -> int:
    if attacker == "ended":
        return 403
    if attacker == "garbage":
        return 401
    return statuses.get(attacker, 404)


@WITH_OR_WITHOUT_TOKENS
async def test_status_of_every_operation_for_tokens_of_related_runs(
    tree: Tree, attacker: str
) -> None:
    operations = {operation.name: operation for operation in OPERATIONS}
    own = tree.own
    listed = 0
    async with tree.client(attacker) as client:
        for name, (values, statuses) in ROWS.items():
            operation = operations[name]
            path = operation.path.format(**own)
            more = dict(values)
            if name == "create_run":
                more["session_id"] = own["session_id"]
            sent = {"params": more} if operation.has_query else {"json": more}
            events, trail = await tree.agents.server.event_count(), len(await tree.audit())
            answer = await client.request(operation.method, path, **sent)
            status = expected(statuses, attacker)
            assert answer.status_code == status, (name, answer.text)
            left = (await tree.audit())[trail:]
            if name == "spawn_from_run" and status == 201:
                await tree.agents.at_work(
                    answer.json()["run"]["id"]
                )  # from here on it writes no events
            if status < 400:
                continue
            assert await tree.agents.server.event_count() == events, name
            known = attacker != "garbage"
            audited = [(one.principal, one.token, one.decision) for one in left]
            code = answer.json()["error"]["code"]
            entry = (tree.runs.get(attacker), "run", code)
            if attacker == "ended":
                # All are the same refusal of the token: they are counted in one entry.
                assert audited in ([], [entry]), name
                listed += len(audited)
            else:
                assert audited == [entry] * known, name
            if status == 404:
                missing = path
                for value in own.values():
                    missing = missing.replace(value, value[:4] + "0" * 26)
                there = answer.text
                for value in own.values():
                    there = there.replace(value, value[:4] + "0" * 26)
                more = {
                    key: value[:4] + "0" * 26 if key == "session_id" else value
                    for key, value in more.items()
                }
                sent = {"params": more} if operation.has_query else {"json": more}
                absent = await client.request(operation.method, missing, **sent)
                assert (absent.status_code, absent.text) == (404, there), name
    assert first_break(await tree.audit()) is None
    if attacker == "ended":
        assert 1 <= listed < len(ROWS) / 2


SEEN = {
    "own": {"own", "child"},
    "parent": {"parent", "own", "sibling", "child"},
    "child": {"child"},
    "sibling": {"sibling"},
    "other": {"other"},
}


@pytest.mark.parametrize(
    ("agents", "attacker"),
    [*((TOKENS, one) for one in SEEN), (OPEN, "own")],
    indirect=["agents"],
)
async def test_lists_and_streams_contain_only_the_callers_subtree(
    tree: Tree, attacker: str
) -> None:
    seen = {tree.sessions[name] for name in SEEN[attacker]}
    async with tree.client(attacker) as client:
        sessions = (await client.get("/sessions")).json()["sessions"]
        assert {one["id"] for one in sessions} == seen
        runs = (await client.get("/runs")).json()["runs"]
        assert {one["session_id"] for one in runs} == seen
        for query, those in (("", ("parent",)), ("?resolvable=false", ("own", "parent"))):
            requests = (await client.get(f"/requests{query}")).json()["requests"]
            assert [one["id"] for one in requests] == [tree.request] * (attacker in those), query
        streamed = set()
        async with client.stream("GET", "/stream") as response:
            async for line in response.aiter_lines():
                if line == ": caught up":
                    break
                if line.startswith("data: "):
                    streamed.add(json.loads(line[6:])["session_id"])
        assert streamed == seen


@WITH_OR_WITHOUT_TOKENS
async def test_status_of_streams_for_tokens_of_related_runs(tree: Tree, attacker: str) -> None:
    status = expected(READ, attacker)
    trail = len(await tree.audit())
    path = f"/stream?sessionId={tree.sessions['own']}"
    async with tree.client(attacker) as client:
        async with client.stream("GET", path) as response:
            assert response.status_code == status
        headers = {"Authorization": client.headers["Authorization"]}
    url = tree.agents.server.url.replace("http", "ws")
    if status in (401, 403):
        with pytest.raises(InvalidStatus) as upgrade:
            await connect(url + path, additional_headers=headers)
        assert upgrade.value.response.status_code == status
    else:
        async with connect(url + path, additional_headers=headers) as socket:
            frame = json.loads(await socket.recv())
        code = {200: "event", 404: "not_found"}[status]
        assert code == (frame["type"] if status == 200 else frame["error"]["code"])
    refusals = 0 if status == 200 or attacker == "garbage" else 2
    assert len(await tree.audit()) == trail + refusals


STOLEN: dict[str, Callable[[Tree], tuple[str, dict[str, Any]]]] = {
    "as another run": lambda tree: (
        f"/sessions/{tree.sessions['child']}/send",
        {"text": "x", "from_run_id": tree.runs["child"]},
    ),
    "as a run it may not see": lambda tree: (
        f"/sessions/{tree.sessions['child']}/send",
        {"text": "x", "from_run_id": tree.runs["sibling"]},
    ),
    "for another workspace": lambda tree: (
        f"/runs/{tree.runs['own']}/spawn",
        {"task": "x", "cwd": "/"},
    ),
    "for a workspace beside": lambda tree: (
        f"/runs/{tree.runs['own']}/spawn",
        {"task": "x", "cwd": f"{Path.cwd()}/.."},
    ),
}


@WITH_TOKENS
@pytest.mark.parametrize("what", STOLEN)
async def test_fields_of_a_call_cannot_widen_the_access_of_a_run(tree: Tree, what: str) -> None:
    path, body = STOLEN[what](tree)
    events, trail = await tree.agents.server.event_count(), len(await tree.audit())
    async with tree.client("own") as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == (404 if "not see" in what else 403), answer.text
    assert await tree.agents.server.event_count() == events
    assert len(await tree.audit()) == trail + 1


@WITH_TOKENS
@pytest.mark.parametrize(("limit", "most", "status"), [("depth", 5, 403), ("children", 16, 409)])
async def test_spawn_beyond_a_tree_limit_is_refused_and_audited(
    tree: Tree, limit: str, most: int, status: int
) -> None:
    """The refusal is audited, and changes nothing."""
    attacker = "child" if limit == "depth" else "own"
    while limit == "depth" and len(tree.runs) < 9:  # down to depth 5, a worker for each
        async with tree.client(attacker) as client:
            path = f"/runs/{tree.runs[attacker]}/spawn"
            made = (await client.post(path, json={"task": "work"})).json()
        attacker = f"below {attacker}"
        tree.runs[attacker] = await tree.agents.at_work(made["run"]["id"])
    async with tree.client(attacker) as client:
        path = f"/runs/{tree.runs[attacker]}/spawn"
        if limit == "children":
            for _ in range(most - 1):
                made = (await client.post(path, json={"task": "x", "provider": "manual"})).json()
                assert made["session"]["parent_run_id"] == tree.runs["own"]
        events, trail = await tree.agents.server.event_count(), len(await tree.audit())
        answer = await client.post(path, json={"task": "x"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["details"] == {"limit": limit, "most": most}
    assert await tree.agents.server.event_count() == events
    (left,) = (await tree.audit())[trail:]
    audited = (left.principal, left.token, left.decision)
    assert audited == (tree.runs[attacker], "run", "forbidden" if status == 403 else "conflict")
    assert (left.operation, left.detail["limit"]) == ("spawn_from_run", limit)


@WITH_TOKENS
async def test_queueing_beyond_the_limit_is_refused_and_audited(tree: Tree) -> None:
    """An agent cannot fill the queue with messages for its busy child."""
    path, body = f"/sessions/{tree.sessions['child']}/send", {"text": "x"}
    async with tree.client("own") as client:
        for _ in range(16):
            assert (await client.post(path, json=body)).status_code == 201
        events, trail = await tree.agents.server.event_count(), len(await tree.audit())
        answer = await client.post(path, json=body)
    assert answer.status_code == 409, answer.text
    assert answer.json()["error"]["details"] == {"limit": "queued", "most": 16}
    assert await tree.agents.server.event_count() == events
    (left,) = (await tree.audit())[trail:]
    assert (left.operation, left.detail["limit"]) == ("send_to_session", "queued")
    person = await tree.agents.server.client.post(path, json=body)
    assert person.status_code == 201


@WITH_TOKENS
async def test_child_may_work_in_a_subdirectory_only(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "out").symlink_to("/")
    async with tree.client("own") as client:
        path = f"/runs/{tree.runs['own']}/spawn"
        made = await client.post(path, json={"task": "x", "cwd": f"{tmp_path}/below/../below"})
        assert made.json()["session"]["cwd"] == str((tmp_path / "below").resolve())
        out = await client.post(path, json={"task": "x", "cwd": f"{tmp_path}/out"})
        assert out.status_code == 403


@WITH_TOKENS
async def test_message_of_an_agent_has_its_run_as_source(tree: Tree) -> None:
    async with tree.client("own") as client:
        answer = await client.post(f"/sessions/{tree.sessions['child']}/send", json={"text": "x"})
    source = answer.json()["message"]["source"]
    assert (source["kind"], source["run_id"]) == ("parent", tree.runs["own"])


@WITH_TOKENS
async def test_streams_and_waits_end_with_the_attempt(tree: Tree) -> None:
    child = tree.sessions["child"]
    async with tree.client("own") as client, anyio.create_task_group() as tasks:
        waited: list[int] = []

        async def wait() -> None:
            path = f"/runs/{tree.runs['child']}/wait"
            waited.append((await client.get(path, params={"timeout_s": 60})).status_code)

        with anyio.fail_after(45):
            async with sse_reader(client, f"/stream?sessionId={child}") as frames:
                await anext(frames)
                tasks.start_soon(wait)
                await tree.agents.end(tree.runs["own"])
                async for _ in frames:
                    pass
    assert waited == [403]
