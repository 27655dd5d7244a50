"""Share links: who has one reads one session and what is below, for a time, and nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from attrs import frozen
from serving import ADMIN, Serving, serving

from agent_orchestrator.operations import OPERATIONS

pytestmark = pytest.mark.anyio


@frozen
class Shared:
    """A session that is shared by a link, its child, and a session that is not shared."""

    server: Serving
    page: httpx.AsyncClient
    """The client of who has the link."""
    link_id: str
    session_id: str
    child_id: str
    other_id: str


@asynccontextmanager
async def shared(directory: Path, **fields: Any) -> AsyncIterator[Shared]:
    async with serving(directory, tokens=(ADMIN,)) as server:
        session, other = await server.session("manual"), await server.session("manual")
        spawned = await server.client.post(
            f"/sessions/{session}/spawn", json={"task": "x", "provider": "manual"}
        )
        made = await server.client.post(f"/sessions/{session}/links", json=fields)
        assert made.status_code == 201, made.text
        headers = {"Authorization": f"Bearer {made.json()['secret']}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as page:
            child = spawned.json()["session"]["id"]
            yield Shared(server, page, made.json()["token"]["id"], session, child, other)


async def test_a_link_reads_its_session_and_what_is_below(tmp_path: Path) -> None:
    async with shared(tmp_path) as one:
        for session_id, status in ((one.session_id, 200), (one.child_id, 200), (one.other_id, 404)):
            for path in ("", "/events", "/messages", "/tree"):
                answer = await one.page.get(f"/sessions/{session_id}{path}")
                assert answer.status_code == status, (path, answer.text)
        listed = (await one.page.get("/sessions")).json()["sessions"]
        assert {session["id"] for session in listed} == {one.session_id, one.child_id}
        runs = (await one.page.get("/runs")).json()["runs"]
        assert {run["session_id"] for run in runs} == {one.child_id}
        assert (await one.page.get("/requests")).json()["requests"] == []
        for session_id in (one.session_id, one.other_id):
            titled = {"title": "a needle"}
            answer = await one.server.client.patch(f"/sessions/{session_id}", json=titled)
            assert answer.status_code == 200, answer.text
        everyone = (await one.server.client.get("/search?q=needle")).json()["hits"]
        assert {hit["session_id"] for hit in everyone} == {one.session_id, one.other_id}
        hits = (await one.page.get("/search?q=needle")).json()["hits"]
        assert {hit["session_id"] for hit in hits} == {one.session_id}
        hidden = await one.page.get(f"/search?q=needle&session_id={one.other_id}")
        assert hidden.status_code == 404
        tree = (await one.page.get(f"/sessions/{one.session_id}/tree")).json()
        assert [below["session"]["id"] for below in tree["children"]] == [one.child_id]


async def test_a_link_allows_no_call_but_those_that_read_its_session(tmp_path: Path) -> None:
    async with shared(tmp_path) as one:
        ids = {"session_id": one.session_id, "run_id": "run_x", "request_id": "req_x"}
        ids |= {"token_id": one.link_id, "notice_id": "ntc_x", "subscription_id": "psh_x"}
        bodies: dict[str, Any] = {
            "seq": 1, "name": "x", "text": "x", "task": "x", "decision": "deny", "grants": [],
            "to_status": "canceled", "path": "/x", "pid": 1, "process_start_id": "x",
            "expires_in_s": 60, "title": "x", "code": "x", "session_id": one.session_id,
            "notice_id": "ntc_x", "state": "shown", "endpoint": "https://x", "p256dh": "x", "auth": "x",
        }  # fmt: skip
        for operation in OPERATIONS:
            if operation.public:
                continue
            names = {a.name for a in operation.request.__attrs_attrs__}  # type: ignore[attr-defined]
            names -= set(operation.path_fields)
            body = {name: value for name, value in bodies.items() if name in names}
            words = {"q": "x"} if operation.name == "search" else {}
            sent: Any = {"params": words} if operation.has_query else {"json": body}
            path = operation.path.format(**ids)
            answer = await one.page.request(operation.method, path, **sent)
            expected = (200, 404) if operation.shared else (403,)
            assert answer.status_code in expected, (operation.name, answer.text)
        assert (await one.page.get("/metrics")).status_code == 403
        assert (await one.page.post("/mcp", json={})).status_code == 403


async def test_a_stream_of_a_link_has_only_its_tree_and_ends_with_it(tmp_path: Path) -> None:
    async with shared(tmp_path) as one:
        refused = await one.page.get(f"/stream?sessionId={one.other_id}")
        assert refused.status_code == 404
        async with one.page.stream("GET", "/stream") as stream:
            assert stream.status_code == 200
            lines = stream.aiter_lines()
            seen = ""
            while "caught up" not in (line := await anext(lines)):
                seen += line
            assert one.session_id in seen
            assert one.child_id in seen
            assert one.other_id not in seen
            await one.server.client.patch(f"/sessions/{one.other_id}", json={"title": "hidden"})
            with anyio.fail_after(60):
                path = f"/sessions/{one.session_id}/links/{one.link_id}/revoke"
                assert (await one.server.client.post(path, json={})).status_code == 200
                async for line in lines:
                    assert "hidden" not in line
        assert (await one.page.get(f"/sessions/{one.session_id}")).status_code == 401


async def test_a_link_expires(tmp_path: Path) -> None:
    async with shared(tmp_path, expires_in_s=1) as one:
        with anyio.fail_after(60):
            while (await one.page.get(f"/sessions/{one.session_id}")).status_code != 401:
                await anyio.sleep(0.05)
