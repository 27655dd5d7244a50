"""What principals with a grant see and do, and that it ends with the grant."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from attrs import define, field
from serving import Serving, serving, sse_reader
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.anyio

ADMIN = "correct-horse-battery-staple"


@define
class People:
    """Callers by their names, and a session of ann's with a child that is at work."""

    server: Serving
    clients: dict[str, httpx.AsyncClient] = field(factory=dict)
    session: str = ""
    child: str = ""
    run: str = ""

    def __getitem__(self, name: str) -> httpx.AsyncClient:
        return self.clients[name]

    async def share(self, session_id: str, **roles: str) -> None:
        grants = [{"principal": name, "role": role} for name, role in roles.items()]
        answer = await self["ann"].put(f"/sessions/{session_id}/access", json={"grants": grants})
        assert answer.status_code == 200, answer.text


@pytest.fixture
async def people(tmp_path: Path) -> AsyncIterator[People]:
    async with serving(tmp_path, tokens=(ADMIN,)) as server, anyio.create_task_group() as tasks:
        people = People(server)
        for name in ("ann", "bob"):
            made = await server.client.post("/tokens", json={"name": name})
            headers = {"Authorization": f"Bearer {made.json()['secret']}"}
            people.clients[name] = httpx.AsyncClient(base_url=server.url, headers=headers)
        made = await people["ann"].post("/sessions", json={"provider": "forever"})
        people.session = made.json()["session"]["id"]
        spawned = await people["ann"].post(
            f"/sessions/{people.session}/spawn", json={"task": "work"}
        )
        people.child = spawned.json()["session"]["id"]
        people.run = spawned.json()["run"]["id"]
        yield people
        await people["ann"].post(f"/runs/{people.run}/cancel")
        for client in people.clients.values():
            await client.aclose()
        tasks.cancel_scope.cancel()


async def test_grant_on_a_child_shows_nothing_of_its_parent(people: People) -> None:
    await people.share(people.child, bob="reader")
    bob = people["bob"]
    for path in (f"/sessions/{people.session}", f"/sessions/{people.session}/tree"):
        assert (await bob.get(path)).status_code == 404
    assert (await bob.get(f"/sessions/{people.child}/tree")).status_code == 200
    listed = (await bob.get("/sessions")).json()["sessions"]
    assert [one["id"] for one in listed] == [people.child]
    assert (await bob.get(f"/requests?root_session_id={people.session}")).status_code == 404


async def test_tree_shows_only_children_that_the_caller_may_see(people: People) -> None:
    await people.share(people.session, bob="reader")
    path = f"/sessions/{people.session}/tree"
    assert len((await people["bob"].get(path)).json()["children"]) == 1
    await people.share(people.child)
    assert (await people["bob"].get(path)).json()["children"] == []
    assert len((await people["ann"].get(path)).json()["children"]) == 1
    # A caller that may not see the child does not get the child's request.
    asked = {"text": "May I?", "request_kind": "approval_request"}
    answer = await people["ann"].post(f"/runs/{people.run}/reply-parent", json=asked)
    assert answer.status_code == 201, answer.text
    own = await people["ann"].post(
        "/runs", json={"session_id": people.session, "provider": "manual"}
    )
    path = f"/runs/{own.json()['run']['id']}/wait?until=attention&timeout_s=0"
    assert (await people["ann"].get(path)).json()["request"]["text"] == "May I?"
    assert (await people["bob"].get(path)).json()["request"] is None


async def test_inbox_contains_only_requests_that_the_caller_may_resolve(people: People) -> None:
    asked = {"text": "May I?", "request_kind": "approval_request"}
    made = await people["ann"].post(f"/runs/{people.run}/reply-parent", json=asked)
    request_id = made.json()["request"]["id"]
    named = f"/requests?session_id={people.child}"

    async def inbox(name: str, path: str = "/requests") -> list[str]:
        return [one["id"] for one in (await people[name].get(path)).json()["requests"]]

    for role in ("reader", "writer", "owner"):
        await people.share(people.child, bob=role)
        decided = await people["bob"].get(f"/requests/{request_id}")
        assert decided.json()["request"]["status"] == "pending"
        assert await inbox("bob") == [request_id] * (role != "reader")
        assert await inbox("bob", f"{named}&resolvable=true") == [request_id] * (role != "reader")
        assert await inbox("bob", named) == [request_id]
        assert await inbox("ann") == [request_id]
    await people.share(people.child, bob="reader")
    path = f"/requests/{request_id}/resolve"
    assert (await people["bob"].post(path, json={"decision": "approve"})).status_code == 403
    await people.share(people.child, bob="writer")
    assert (await people["bob"].post(path, json={"decision": "approve"})).status_code == 200


async def test_repeated_key_gets_the_old_answer_after_access_was_removed(people: People) -> None:
    """Repeating the key returns only the old answer."""
    await people.share(people.session, bob="writer")
    body = {"text": "hello", "role": "system", "idempotency_key": "k"}
    path = f"/sessions/{people.session}/messages"
    assert (await people["bob"].post(path, json=body)).status_code == 201
    await people.share(people.session)
    again = await people["bob"].post(path, json=body)
    assert again.headers["Idempotent-Replayed"] == "true"
    body["idempotency_key"] = "l"
    assert (await people["bob"].post(path, json=body)).status_code == 404


@asynccontextmanager
async def socket_reader(people: People, path: str) -> AsyncIterator[AsyncIterator[Any]]:
    url = people.server.url.replace("http", "ws") + path
    headers = {"Authorization": people["bob"].headers["Authorization"]}
    async with connect(url, additional_headers=headers) as socket:

        async def frames() -> AsyncIterator[Any]:
            try:
                async for frame in socket:
                    yield json.loads(frame)
            except ConnectionClosed:
                return

        yield frames()


@pytest.mark.parametrize("role", ["reader", "writer", "owner"])
@pytest.mark.parametrize("kind", ["sse", "socket"])
@pytest.mark.parametrize("which", ["one", "two"])
async def test_stream_ends_when_its_grant_is_removed(
    people: People, role: str, kind: str, which: str
) -> None:
    await people.share(people.session, bob=role)
    path = f"/stream?sessionId={people.child}"
    if which == "two":
        path += f"&sessionId={people.session}"
    opened = sse_reader(people["bob"], path) if kind == "sse" else socket_reader(people, path)
    async with opened as frames:
        await anext(frames)
        await people.share(people.session)
        with anyio.fail_after(60):
            last = [frame async for frame in frames]
    if kind == "socket":
        assert last[-1]["error"]["code"] == "not_found"
    assert (await people["bob"].get(path)).status_code == 404


async def test_stream_of_all_sessions_goes_on_without_an_unshared_session(people: People) -> None:
    await people.share(people.session, bob="reader")
    async with socket_reader(people, "/stream") as frames:
        with anyio.fail_after(60):
            while (await anext(frames))["type"] != "caught_up":
                pass
        await people.share(people.session)
        said = {"text": "secret", "role": "system"}
        await people["ann"].post(f"/sessions/{people.session}/messages", json=said)
        await people["bob"].post("/sessions", json={"title": "own"})
        with anyio.fail_after(60):
            frame = await anext(frames)
            while (
                frame["event"]["event_type"] != "session.created"
            ):  # events from before the change may still come
                assert "secret" not in json.dumps(frame)
                frame = await anext(frames)
        assert frame["event"]["data"]["title"] == "own"


async def test_wait_ends_when_its_grant_is_removed(people: People) -> None:
    await people.share(people.session, bob="reader")
    answers: list[int] = []

    async def wait() -> None:
        answer = await people["bob"].get(f"/runs/{people.run}/wait?timeout_s=60")
        answers.append(answer.status_code)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            while "access:bob" not in people.server.engine.core.notifier._waiters:
                await anyio.sleep(0.005)
            await people.share(people.session)
    assert answers == [404]
