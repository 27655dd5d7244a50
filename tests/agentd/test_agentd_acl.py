"""Every call and stream of the API description, tried by every kind of caller.

A call without a row fails the test; so does a refused call that changes anything.
"""

import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from attrs import define, field
from push_service import Browser
from serving import ADMIN, PUSH_SERVICE, serving
from waiting_agents import Agents
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from agent_orchestrator.operations.session_files import LINES
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.testing.stores.samples import a_notice, a_subscription
from agent_orchestrator.wire.openapi import openapi_document

pytestmark = pytest.mark.anyio

NOBODY = ("none", "bad", "expired", "revoked", "ended")
"""No token, an unknown one, and three that have ended, the last of them a run's."""

CALLERS = (
    "read", "write", "approve",  # the owner, by tokens that are good for one thing each
    "admin", "owner", "granted owner", "writer", "reader", "stranger", "own", "sibling",
)  # fmt: skip
"""``own`` is the run the calls are about, ``sibling`` one of another child of the same parent."""


def row(statuses: str, **sent: Any) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the status for each caller, in the order of :data:`CALLERS`, and the fields to send."""
    numbers = [int(one) for one in statuses.replace("|", " ").split()]
    return dict(zip(CALLERS, numbers, strict=True)), sent


LOOK = "200 403 403 | 200 200 200 200 200 404 | 200 404"
"""Reading one item; below, listing, whatever each caller finds."""
LIST = "200 403 403 | 200 200 200 200 200 200 | 200 200"
WORK = "403 201 403 | 201 201 201 201 403 404 | 403 404"
OWN = "200 403 403 | 200 200 200 403 403 404 | 403 404"
OWN_WRITE = "403 200 403 | 200 200 200 403 403 404 | 403 404"
RUN_WORK = "403 201 403 | 201 201 201 201 403 404 | 201 404"
ADMINS = "403 403 403 | 200 403 403 403 403 403 | 403 403"

GRANTS = [
    {"principal": "carol", "role": "writer"},
    {"principal": "dan", "role": "owner"},
    {"principal": "ron", "role": "reader"},
]

BROWSER = Browser(f"{PUSH_SERVICE}/x")

ROWS = {
    "POST /sessions": row("403 201 403 | 201 201 201 201 201 201 | 403 403", title="x"),
    "GET /sessions": row(LIST),
    "GET /sessions/{session_id}": row(LOOK),
    "POST /sessions/{session_id}/seen": row(
        "200 403 403 | 200 200 200 200 200 404 | 403 403", seq=1
    ),
    "GET /sessions/{session_id}/diff": row("200 403 403 | 200 200 200 200 200 404 | 403 403"),
    "PATCH /sessions/{session_id}": row(OWN_WRITE, metadata={"by": "somebody"}),
    "POST /sessions/{session_id}/close": row(OWN_WRITE, cascade=True),
    "POST /sessions/{session_id}/prune": row(  # never for an agent
        "403 200 403 | 200 200 200 403 403 404 | 403 403", retain_events=1
    ),
    "GET /sessions/{session_id}/export": row("200 403 403 | 200 200 200 200 200 404 | 403 403"),
    # An empty file is refused after the caller is checked.
    "POST /sessions/import": row("403 400 403 | 400 400 400 400 400 400 | 403 403"),
    "POST /sessions/{session_id}/attach": row(
        # The session has a run, so nobody's program gets its conversation.
        "403 409 403 | 409 409 409 409 403 404 | 403 403",
        pid=1,
        process_start_id="x",
    ),
    "POST /sessions/adopt": row(
        # Its default provider has no conversations.
        "403 403 403 | 400 403 403 403 403 403 | 403 403"
    ),
    "GET /sessions/{session_id}/access": row(OWN),
    "PUT /sessions/{session_id}/access": row(OWN_WRITE, grants=GRANTS),
    "GET /sessions/{session_id}/links": row(OWN),
    "POST /sessions/{session_id}/links": row(OWN_WRITE.replace("200", "201")),
    "POST /sessions/{session_id}/links/{token_id}/revoke": row(OWN_WRITE),
    "GET /sessions/{session_id}/messages": row(LOOK),
    "POST /sessions/{session_id}/messages": row(WORK, text="x", role="system"),
    "POST /sessions/{session_id}/send": row(WORK, text="x"),
    "POST /sessions/{session_id}/spawn": row(WORK, task="x", provider="manual"),
    "GET /sessions/{session_id}/events": row(LOOK),
    "GET /sessions/{session_id}/tree": row(LOOK),
    "POST /runs": row(WORK, session_id="{session_id}", provider="manual"),
    "GET /runs": row(LIST),
    "GET /search": row(LIST, q="x"),
    "GET /runs/{run_id}": row(LOOK),
    "GET /runs/{run_id}/wait": row(LOOK, timeout_s=0, until="attention"),
    "GET /runs/{run_id}/diagnose": row(LOOK),
    "POST /runs/{run_id}/spawn": row(RUN_WORK, task="x", provider="manual"),
    "POST /runs/{run_id}/reply-parent": row(RUN_WORK, text="x"),
    "POST /runs/{run_id}/transition": row(
        "403 200 403 | 200 200 200 200 403 404 | 403 404", to_status="canceled"
    ),
    "POST /runs/{run_id}/cancel": row("403 202 403 | 202 202 202 202 403 404 | 403 404"),
    "GET /requests": row(LIST),
    "GET /requests/{request_id}": row(LOOK),
    "POST /requests/{request_id}/resolve": row(
        "403 403 200 | 200 200 200 200 403 404 | 403 404", decision="deny"
    ),
    "POST /requests/{request_id}/extend": row(
        "403 403 200 | 200 200 200 200 403 404 | 403 404", expires_in_s=7200
    ),
    "GET /daemon/status": row("200 403 403 | 200 200 200 200 200 200 | 403 403"),
    "GET /metrics": row("200 403 403 | 200 200 200 200 200 200 | 403 403"),
    "GET /daemon/audit": row(ADMINS),
    "GET /daemon/check": row(ADMINS),
    "GET /daemon/doctor": row(ADMINS),
    "POST /daemon/backup": row(ADMINS, path="{directory}/copy.db", force=True),
    "GET /tokens": row(ADMINS),
    "POST /tokens": row(ADMINS.replace("200", "201"), name="mine"),
    "POST /tokens/{token_id}/revoke": row(ADMINS),
    "GET /notices": row("200 403 403 | 200 200 200 200 200 200 | 403 403"),
    "GET /notices/{notice_id}": row("404 403 403 | 200 404 404 404 404 404 | 403 403"),
    "POST /notices/test": row("409 403 403 | 409 409 409 409 409 409 | 403 403"),  # no target
    "GET /push/key": row("200 403 403 | 200 200 200 200 200 200 | 403 403"),
    "GET /push/subscriptions": row("200 403 403 | 200 200 200 200 200 200 | 403 403"),
    "POST /push/subscriptions": row(
        "201 403 403 | 201 201 201 201 201 201 | 403 403", **BROWSER.fields
    ),
    "PATCH /push/subscriptions/{subscription_id}": row(
        "200 403 403 | 200 200 404 404 404 404 | 403 403", push="off"
    ),
    "DELETE /push/subscriptions/{subscription_id}": row(
        "200 403 403 | 200 200 404 404 404 404 | 403 403"
    ),
    "POST /push/receipts": row(
        "200 403 403 | 200 200 404 404 404 404 | 403 403", notice_id="{notice_id}", state="shown"
    ),
    "POST /notices/{notice_id}/retry": row(ADMINS),
    "GET /devices": row("200 403 403 | 200 200 200 200 200 200 | 403 403"),
    "POST /devices": row(ADMINS.replace("200", "201"), name="mine"),
    "POST /devices/claim": row(" ".join(["201"] * 11), code="{code}"),
    "POST /devices/{token_id}/revoke": row("403 200 403 | 200 200 404 404 404 404 | 403 403"),
    "GET /stream": row(LOOK, sessionId="{session_id}"),
    "SOCKET /stream": row(LOOK, sessionId="{session_id}"),
    "POST /mcp": row(
        "403 403 403 | 403 403 403 403 403 403 | 200 200", jsonrpc="2.0", id=1, method="ping"
    ),
    "GET /openapi.json": row("200 200 200 | 200 200 200 200 200 200 | 200 200"),
    "GET /health": row("200 200 200 | 200 200 200 200 200 200 | 200 200"),
}

PUBLIC = {"GET /health": 200, "POST /devices/claim": 201}
"""The calls that need no token, and their status."""

ENDING = ("POST /runs/{run_id}/transition", "POST /runs/{run_id}/cancel")
"""These calls end a run, so they get a manual one instead of the agent's."""


def test_every_call_has_a_row_of_expected_statuses() -> None:
    paths = openapi_document("0")["paths"]
    calls = {f"{method.upper()} {path}" for path, item in paths.items() for method in item}
    assert set(ROWS) == calls | {"SOCKET /stream"}


_NUMBERS = count()


@define
class World:
    """A session of ann's with two children whose agents are at work, shared with three people."""

    agents: Agents
    directory: Path
    client: httpx.AsyncClient
    """A client without a token: each call adds the token of its caller."""
    tokens: dict[str, str] = field(factory=dict)
    ids: dict[str, str] = field(factory=dict)

    @property
    def admin(self) -> httpx.AsyncClient:
        return self.agents.server.client

    def headers(self, caller: str) -> dict[str, str]:
        token = self.tokens[caller]
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def post(self, path: str, **values: Any) -> Any:
        answer = await self.admin.post(path, json=values)
        assert answer.is_success, answer.text
        return answer.json()

    async def make(self) -> None:
        """Make all callers and all items."""
        every = ["read", "write", "approve"]
        people = {"owner": "ann", "writer": "carol", "reader": "ron", "granted owner": "dan"}
        for caller, name in (people | {"stranger": "eve"}).items():
            await self._token(caller, principal=name, scopes=every)
        for scope in every:
            await self._token(scope, principal="ann", scopes=[scope])
        await self._token("admin", principal="root", scopes=["admin"])
        await self._token("expired", principal="ann", scopes=every, expires_in_s=1)
        revoked = await self._token("revoked", principal="ann", scopes=every)
        await self.post(f"/tokens/{revoked}/revoke")
        self.tokens |= {"none": "", "bad": "apt_" + "A" * 43}
        ann = self.headers("owner")
        made = await self.client.post("/sessions", json={"provider": "agent"}, headers=ann)
        root = made.json()["session"]["id"]
        path = f"/sessions/{root}/access"
        shared = await self.client.put(path, json={"grants": GRANTS}, headers=ann)
        assert shared.json()["grants"] == GRANTS
        own = await self._child(root, "own")
        ended = own["run"]["id"]
        self.tokens["ended"] = self.agents.token(ended)
        await self.agents.end(ended)
        session_id = own["session"]["id"]
        self.ids = {"session_id": session_id, "run_id": await self.agents.start(session_id)}
        self.tokens["own"] = self.agents.token(self.ids["run_id"])
        await self._child(root, "sibling")

    async def _child(self, root: str, caller: str) -> Any:
        made = await self.post(f"/sessions/{root}/spawn", task="work")
        self.tokens[caller] = self.agents.token(await self.agents.at_work(made["run"]["id"]))
        return made

    async def _token(self, caller: str, **fields: Any) -> str:
        made = await self.post("/tokens", name="t", **fields)
        self.tokens[caller] = made["secret"]
        return str(made["token"]["id"])

    async def fresh(self, call: str) -> dict[str, str]:
        """Return the ids of the call's target. What the call may end is made for it."""
        ids = self.ids | {"directory": str(self.directory)}
        if "{request_id}" in call:
            asked = {"text": "May I?", "request_kind": "approval_request"}
            reply = await self.post(f"/runs/{ids['run_id']}/reply-parent", **asked)
            ids["request_id"] = reply["request"]["id"]
        if "{notice_id}" in call:
            failed = a_notice(
                ids["run_id"], target=f"t{next(_NUMBERS)}", state="failed", next_at=None
            )
            await self.agents.server.store.transact(lambda tx: tx.add_notice(failed))
            ids["notice_id"] = failed.id
        if "/push/" in call:
            subscription = a_subscription("ann", events=())
            shown = a_notice(
                ids["run_id"],
                session_id=ids["session_id"],
                target=subscription.id,
                principal="ann",
                state="sent",
                next_at=None,
            )

            def change(tx: Transaction) -> None:
                for former in tx.push_subscriptions(limit=99):
                    tx.remove_push_subscription(former.id)
                tx.add_push_subscription(subscription)
                tx.add_notice(shown)

            await self.agents.server.store.transact(change)
            ids |= {"subscription_id": subscription.id, "notice_id": shown.id}
        if call == "POST /devices/claim":
            ids["code"] = (await self.post("/devices", name="new"))["code"]
        if call == "POST /devices/{token_id}/revoke":
            invited = await self.post("/devices", name="victim", principal="ann")
            claimed = await self.post("/devices/claim", code=invited["code"])
            ids["token_id"] = claimed["device"]["id"]
        elif "/links/" in call:
            made = await self.post(f"/sessions/{ids['session_id']}/links")
            ids["token_id"] = made["token"]["id"]
        elif "{token_id}" in call:
            made = await self.post("/tokens", name="victim")
            ids["token_id"] = made["token"]["id"]
        if call.endswith("/close"):
            below = f"/sessions/{ids['session_id']}/spawn"
            made = await self.post(below, task="x", provider="manual")
            await self.post(f"/runs/{made['run']['id']}/cancel")
            ids["session_id"] = made["session"]["id"]
        if call in ENDING:
            made = await self.post("/runs", session_id=ids["session_id"], provider="manual")
            ids["run_id"] = made["run"]["id"]
        return ids

    async def state(self) -> tuple[int, int]:
        """Return counts that change with every successful write."""
        store = self.agents.server.store
        tokens = await store.read(lambda view: view.tokens(limit=500))
        return await self.agents.server.event_count(), sum(not one.revoked_at for one in tokens)

    async def tidy(self, call: str, answer: httpx.Response) -> None:
        """Cancel the run that a call has started, so that no limit is reached."""
        if call.endswith(("/spawn", "/send")) or call == "POST /runs":
            run = answer.json()["run"]
            if run is not None:
                await self.post(f"/runs/{run['id']}/cancel")

    async def ask(
        self, caller: str, call: str, ids: dict[str, str], sent: dict[str, Any]
    ) -> tuple[int, Any]:
        method, path = call.split()
        path = path.format(**ids)
        values = {k: v.format(**ids) if isinstance(v, str) else v for k, v in sent.items()}
        if method == "SOCKET":
            return await self._ask_socket(caller, path, values)
        in_query = method == "GET" or call == "POST /sessions/import"
        where = {"params": values} if in_query else {"json": values}
        headers = self.headers(caller)
        async with self.client.stream(method, path, headers=headers, **where) as answer:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                return answer.status_code, None
            await answer.aread()
        if answer.is_success:
            await self.tidy(call, answer)
        if answer.headers["content-type"].startswith(("text/plain", LINES)):
            return answer.status_code, answer.text
        return answer.status_code, answer.json()

    async def _ask_socket(self, caller: str, path: str, query: dict[str, Any]) -> tuple[int, Any]:
        url = self.agents.server.url.replace("http", "ws")
        url += f"{path}?{httpx.QueryParams(query)}"
        try:
            async with connect(url, additional_headers=self.headers(caller)) as socket:
                if caller == "none":
                    await socket.send('{"type": "auth", "token": "x"}')
                frame = json.loads(await socket.recv())
        except InvalidStatus as refusal:
            return refusal.response.status_code, None
        if frame["type"] != "error":
            return 200, frame
        codes = {"unauthorized": 401, "forbidden": 403, "not_found": 404}
        return codes[frame["error"]["code"]], frame


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    agents = Agents()
    async with (
        serving(
            tmp_path, tokens=(ADMIN,), agents={"agent": agents}, max_concurrency=4
        ) as agents.server,
        httpx.AsyncClient(base_url=agents.server.url, timeout=60) as client,
    ):
        world = World(agents, tmp_path, client)
        await world.make()
        yield world
        for run in (await world.admin.get("/runs")).json()["runs"]:
            await world.admin.post(f"/runs/{run['id']}/cancel")


@pytest.mark.parametrize("callers", [NOBODY, *((one,) for one in CALLERS)], ids=lambda c: c[0])
async def test_status_of_every_call_for_every_caller(
    world: World, callers: tuple[str, ...]
) -> None:
    if "expired" in callers:
        with anyio.fail_after(60):
            while (await world.ask("expired", "GET /openapi.json", {}, {}))[0] != 401:
                await anyio.sleep(0.05)
    for caller in callers:
        await _try_everything(world, caller)


async def _try_everything(world: World, caller: str) -> None:
    for call, (statuses, sent) in ROWS.items():
        ids = await world.fresh(call)
        before = await world.state()
        nobody = 403 if caller == "ended" else 401
        expected = statuses.get(caller, PUBLIC.get(call, nobody))
        status, answer = await world.ask(caller, call, ids, sent)
        assert status == expected, (caller, call, answer)
        if status >= 400:
            assert await world.state() == before, call
        if status == 404 and answer is not None:
            # A hidden item is answered like one that does not exist.
            absent = {
                name: f"{value[:4]}{'0' * 26}" if name.endswith("_id") else value
                for name, value in ids.items()
            }
            missing = json.dumps(await world.ask(caller, call, absent, sent))
            there = json.dumps((status, answer))
            for name, value in ids.items():
                there = there.replace(value, absent[name])
            assert missing == there, call


async def test_lists_and_streams_contain_only_readable_items(world: World) -> None:
    for caller in CALLERS:
        await _check_lists(world, caller)


async def _check_lists(world: World, caller: str) -> None:
    may_read = ROWS["GET /sessions/{session_id}"][0][caller] == 200
    request_id = (await world.fresh("{request_id}"))["request_id"]
    wanted = {"sessions": "session_id", "runs": "run_id", "requests": "request_id"}
    ids = world.ids | {"request_id": request_id}
    for what, name in wanted.items():
        every = {"resolvable": "false"} if what == "requests" else {}
        status, answer = await world.ask(caller, f"GET /{what}", {}, every)
        if status == 200:
            found = ids[name] in [one["id"] for one in answer[what]]
            assert found == may_read, (caller, what)
    url = world.agents.server.url.replace("http", "ws") + "/stream"
    seen = set()
    async with connect(url, additional_headers=world.headers(caller)) as socket:
        async for text in socket:
            frame = json.loads(text)
            if frame["type"] != "event":
                break
            seen.add(frame["event"]["session_id"])
    assert (ids["session_id"] in seen) == may_read, caller
