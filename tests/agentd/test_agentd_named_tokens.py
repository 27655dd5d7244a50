"""Named tokens: what each scope allows, and that they end."""

import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import psutil
import pytest
from attrs import evolve
from serving import Serving, serving, sse_reader
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Unauthorized
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.operations.events import StreamRequest
from agentd.http1 import STALL_S

pytestmark = pytest.mark.anyio

ADMIN = "correct-horse-battery-staple"


async def token(server: Serving, name: str = "ann", **fields: Any) -> tuple[str, dict[str, str]]:
    answer = await server.client.post("/tokens", json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    return made["token"]["id"], {"Authorization": f"Bearer {made['secret']}"}


@pytest.mark.parametrize("scope", ["read", "write", "approve", "admin"])
async def test_token_allows_only_the_operations_of_its_scope(tmp_path: Path, scope: str) -> None:
    ids = {
        f"{kind}_id": f"{kind[:3]}_none"
        for kind in ("session", "run", "request", "token", "notice", "subscription")
    }
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        _, headers = await token(server, scopes=[scope])
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as client:
            for operation in OPERATIONS:
                if operation.public:
                    continue
                # With invalid fields, so that an allowed call changes nothing.
                path = operation.path.format(**ids)
                sent = {"params": {"x": 1}} if operation.has_query else {"json": {"x": 1}}
                plain = await client.request(operation.method, path, **sent)
                assert plain.status_code == 400, operation.name
                command = {
                    "name": "x", "text": "x", "q": "x", "task": "x", "decision": "deny", "session_id": "ses_n",
                    "to_status": "canceled", "path": str(tmp_path / "data.db"),
                    "pid": 1, "process_start_id": "x",
                    "grants": [], "expires_in_s": 60, "seq": 1,
                    "notice_id": "ntc_x",
                    "state": "shown", "endpoint": "https://x", "p256dh": "x", "auth": "x",
                }  # fmt: skip
                names = {a.name for a in operation.request.__attrs_attrs__}  # type: ignore[attr-defined]
                body = {name: value for name, value in command.items() if name in names}
                body = {k: v for k, v in body.items() if k not in operation.path_fields}
                if operation.has_query:
                    body.pop("state", None)  # lists have other states
                sent = {"params": body} if operation.has_query else {"json": body}
                answer = await client.request(operation.method, path, **sent)
                is_forbidden = answer.status_code == 403
                assert is_forbidden == (scope not in ("admin", operation.scope)), operation.name
            stream = await client.get("/stream?sessionId=ses_none")
            assert stream.status_code == (404 if scope in ("read", "admin") else 403)


async def test_token_without_scope_approve_cannot_set_approvals_to_allow(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        _, writer = await token(server, "writer", scopes=["read", "write"])
        _, approver = await token(server, "approver", scopes=["write", "approve"])

        async def create(headers: dict[str, str], approvals: str) -> httpx.Response:
            body = {"approvals": approvals}
            return await server.client.post("/sessions", json=body, headers=headers)

        refused = await create(writer, "allow")
        assert refused.status_code == 403, refused.text
        assert refused.json()["error"]["details"]["scope"] == "approve"
        listed = await server.client.get("/sessions", headers=writer)
        assert listed.json()["sessions"] == []
        for policy in ("ask-parent", "ask-human", "deny"):
            assert (await create(writer, policy)).status_code == 201
        assert (await create(approver, "allow")).status_code == 201


async def test_token_without_scope_approve_cannot_widen_the_sandbox(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        _, writer = await token(server, "writer", scopes=["read", "write"])
        _, approver = await token(server, "approver", scopes=["write", "approve"])

        async def create(headers: dict[str, str], sandbox: str) -> httpx.Response:
            body = {"sandbox": sandbox}
            return await server.client.post("/sessions", json=body, headers=headers)

        for sandbox in ("workspace-write", "danger-full-access"):
            refused = await create(writer, sandbox)
            assert refused.status_code == 403, refused.text
            assert refused.json()["error"]["details"]["scope"] == "approve"
            assert (await create(approver, sandbox)).status_code == 201
        made = await create(writer, "read-only")
        assert made.status_code == 201
        session_id = made.json()["session"]["id"]
        for method, path in (("PATCH", ""), ("POST", "/messages")):
            body = {"sandbox": "danger-full-access"} | ({"text": "x"} if path else {})
            answer = await server.client.request(
                method, f"/sessions/{session_id}{path}", json=body, headers=writer
            )
            assert answer.status_code == 403, answer.text


async def test_principal_sees_only_its_own_sessions(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        theirs = await server.session()
        _, phone = await token(server, "phone", principal="ann")
        _, laptop = await token(server, "laptop", principal="ann")
        made = await server.client.post("/sessions", json={}, headers=phone)
        own = made.json()["session"]
        assert own["owner"] == "ann"
        listed = (await server.client.get("/sessions", headers=laptop)).json()["sessions"]
        assert [one["id"] for one in listed] == [own["id"]]
        answer = await server.client.get(f"/sessions/{theirs}", headers=laptop)
        assert answer.status_code == 404


@pytest.mark.parametrize("how", ["revoked", "expired"])
@pytest.mark.parametrize("one", ["?sessionId=", ""])
async def test_stream_ends_when_its_token_ends(tmp_path: Path, how: str, one: str) -> None:
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        expires = {"expires_in_s": 5} if how == "expired" else {}
        token_id, headers = await token(server, **expires)
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as client:
            session = (await client.post("/sessions", json={})).json()["session"]["id"]
            path = f"/stream{one}{session if one else ''}"
            async with sse_reader(client, path) as frames:
                await anext(frames)
                if how == "revoked":
                    await server.client.post(f"/tokens/{token_id}/revoke")
                with anyio.fail_after(60):
                    assert [frame async for frame in frames] == []
            assert (await client.get("/sessions")).status_code == 401
        assert headers["Authorization"].removeprefix("Bearer apt_").encode() not in kept(tmp_path)


async def read_to_the_end(reader: ClientConnection) -> None:
    while True:
        await reader.recv()


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_websockets_and_waits_end_when_their_token_ends(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        token_id, headers = await token(server, **({"expires_in_s": 6} if how == "expired" else {}))
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
            made = await client.post("/sessions", json={"provider": "forever"})
            session = made.json()["session"]["id"]
            sent = await client.post(f"/sessions/{session}/messages", json={"text": "x"})
            run = sent.json()["run"]["id"]
            cursor, said = 0, False
            while not said:  # until the agent has emitted its only message
                page = (
                    await client.get(f"/sessions/{session}/events?wait_s=10&cursor={cursor}")
                ).json()
                cursor = page["next_cursor"]
                said = any(one["event_type"] == "agent.message" for one in page["events"])
            answers = []

            async def ask(path: str) -> None:
                answers.append((await client.get(path)).status_code)

            url = server.url.replace("http", "ws") + f"/stream?sessionId={session}"
            async with connect(url, additional_headers=headers) as reader:
                await reader.recv()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask, f"/runs/{run}/wait?timeout_s=50")
                    tasks.start_soon(ask, f"/sessions/{session}/events?wait_s=50&cursor={cursor}")
                    if how == "revoked":
                        await server.client.post(f"/tokens/{token_id}/revoke")
                    with anyio.fail_after(45):
                        with pytest.raises(ConnectionClosed) as closed:
                            await read_to_the_end(reader)
                        while len(answers) < 2:
                            await anyio.sleep(0.005)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4401
            assert answers == [401, 401]
        await server.client.post(f"/runs/{run}/cancel")


SOCKET = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def is_served(server: Serving, connection: socket.socket) -> bool:
    """Return whether the server, which is in this process, still has a connection open."""
    ends = (server.address, connection.getsockname())
    return any((one.laddr, one.raddr) == ends for one in psutil.Process().net_connections("tcp4"))


async def blocked(server: Serving) -> None:
    """Wait until the daemon waits for the reader: it sends nothing and does not read the store."""
    before = unchanged = 0.0
    while unchanged < 3:
        await anyio.sleep(0.05)
        while server.store._reads.borrowed_tokens:
            await anyio.sleep(0.01)
        now = server.metrics._streamed.values[()]
        unchanged = unchanged + 1 if now == before and now else 0
        before = now


def read_on(connection: socket.socket) -> None:
    connection.settimeout(60)
    while connection.recv(1 << 16):
        pass


@pytest.mark.parametrize("upgrade", ["", SOCKET], ids=["sse", "socket"])
@pytest.mark.parametrize(
    ("how", "which"),
    [
        *((how, "?sessionId=") for how in ("revoked", "expired", "put out")),
        # A stream of all sessions goes on without the session that was unshared.
        *((how, "") for how in ("revoked", "expired")),
    ],
)
async def test_stalled_reader_is_disconnected_when_its_access_ends(
    tmp_path: Path, how: str, upgrade: str, which: str
) -> None:
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        session = await server.session("talkative")
        await server.say(session, "4000")  # 4 MB: more than the buffers between them hold
        expires = {"expires_in_s": 5} if how == "expired" else {}
        token_id, headers = await token(server, **expires)
        access = f"/sessions/{session}/access"
        grants = [{"principal": "ann", "role": "reader"}]
        await server.client.put(access, json={"grants": grants})
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.connect(server.address)
            path = f"/stream{which}{session if which else ''}"
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade}"
                f"Authorization: {headers['Authorization']}\r\n\r\n".encode()
            )
            await blocked(server)
            if how == "revoked":
                await server.client.post(f"/tokens/{token_id}/revoke")
            elif how == "put out":
                await server.client.put(access, json={"grants": []})
            with anyio.fail_after(STALL_S / 2):
                while is_served(server, connection):
                    await anyio.sleep(0.02)
            assert server.metrics.streams == 0
            with pytest.raises(ConnectionResetError):
                await anyio.to_thread.run_sync(read_on, connection)


async def test_lagging_reader_gets_nothing_after_its_token_expired(tmp_path: Path) -> None:
    """Also if much is left to read."""
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        session = await server.session("talkative")
        await server.say(session, "4000")
        now = server.engine.core.now()
        who = Principal("ann", admin=True, kind="named", expires_at=now + timedelta(seconds=4))
        engine = server.engine.acting_as(who)
        for ids in ([session], []):
            async with engine.subscribe(StreamRequest(ids, None)) as reader:
                assert len(await reader.receive()) > 100
                with anyio.fail_after(60):
                    while server.engine.core.now() < who.expires_at:
                        await anyio.sleep(0.01)
                with pytest.raises(Unauthorized, match="expired"):
                    await reader.receive()
            who = evolve(who, expires_at=server.engine.core.now() + timedelta(seconds=4))
            engine = server.engine.acting_as(who)


def kept(directory: Path) -> bytes:
    """Return the contents of the database's files; one may be renamed meanwhile."""
    found = b""
    for path in directory.glob("data.db*"):
        with suppress(FileNotFoundError):
            found += path.read_bytes()
    assert found
    return found
