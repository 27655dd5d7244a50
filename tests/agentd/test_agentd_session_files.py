"""Files of sessions over HTTP: long ones, cut ones, several at once, and a daemon or a disk that fails meanwhile."""

import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import httpx
import pytest
from loops import ON_ONE_LOOP
from serving import Serving, agentd, serving, until
from test_agentd_process import call, wait_for
from test_session_files import file_of, lines_of, open_full

from agent_orchestrator import connect
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.engine import exports, imports
from agent_orchestrator.long_work import SHORT_TURN_S
from agent_orchestrator.wire import session_file
from agent_orchestrator.wire.session_file import Writer
from agentd.requests import MAX_WAITING, RequestBody

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

IMPORT = "/sessions/import?new_id=true"
LINES = {"Content-Type": "application/x-ndjson"}


def lengthened(file: bytes, count: int) -> bytes:
    """Return the file of a session with further events, of some 4,000 bytes each."""
    *lines, last, _ = lines_of(file)
    session, event = lines[0]["session"], last["event"]
    event = event | {"run_id": None, "attempt": None, "event_type": "backend.event"}
    event["data"] = {"kind": "x", "payload": "x" * 4000}
    first = session["last_seq"] + 1
    session["last_seq"] += count
    more = [{"kind": "event", "event": event | {"seq": first + number}} for number in range(count)]
    return file_of([*lines, last, *more])


async def file_of_a_session(server: Serving, text: str = "said") -> bytes:
    made = await server.client.post("/sessions", json={"provider": "manual"})
    session_id = made.json()["session"]["id"]
    path = f"/sessions/{session_id}"
    await server.client.post(f"{path}/messages", json={"text": text})
    answer = await server.client.get(f"{path}/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    return answer.content


async def sessions(server: Serving) -> list[Any]:
    return list((await server.client.get("/sessions")).json()["sessions"])


async def test_a_file_may_be_longer_than_a_body(tmp_path: Path) -> None:
    async with serving(tmp_path, max_body=100_000) as server:
        file = await file_of_a_session(server, "x" * 90_000)
        assert len(file) > 150_000
        async with connect(server.url) as client:

            async def parts() -> AsyncIterator[bytes]:
                yield file

            reply = await client.import_session(parts(), new_id=True)
        assert reply.canceled
        assert len(await sessions(server)) == 2
        # Also with its length in the head, and only this type.
        path = "/sessions/import?new_id=true"
        answer = await server.client.post(path, content=file, headers=LINES)
        assert answer.status_code == 201, answer.text
        for kind in ("application/json", "text/plain"):
            sent = {"Content-Type": kind}
            answer = await server.client.post(path, content=file, headers=sent)
            assert answer.status_code == 415
        head = await server.client.head(f"/sessions/{answer_id(file)}/export")
        assert (head.status_code, head.content) == (200, b"")
        for method in ("HEAD", "GET"):
            missing = await server.client.request(method, "/sessions/ses_none/export")
            assert missing.status_code == 404


def answer_id(file: bytes) -> str:
    return str(json.loads(file.splitlines()[0])["session"]["id"])


async def test_a_connection_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        file = await file_of_a_session(server)
        path = "/sessions/import?new_id=true"

        async def broken() -> AsyncIterator[bytes]:
            yield file[:-100]
            await anyio.sleep_forever()

        async def one_more() -> int:
            return (await server.client.post(path, content=file, headers=LINES)).status_code

        async with anyio.create_task_group() as tasks, httpx.AsyncClient() as other:

            async def send() -> None:
                await other.post(f"{server.url}{path}", content=broken(), headers=LINES)

            tasks.start_soon(send)
            with anyio.fail_after(60):
                while not server.engine.core.imports.count:
                    await anyio.sleep(0.01)
                assert await one_more() == 429
            tasks.cancel_scope.cancel()
        with anyio.fail_after(60):
            while server.engine.core.imports.count:
                await anyio.sleep(0.01)
            assert len(await sessions(server)) == 1
            assert await one_more() == 201
        assert len(await sessions(server)) == 2


async def test_a_daemon_that_closes_begins_no_file(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        session_id = answer_id(await file_of_a_session(server))
        server.lifetime.close()
        answer = await server.client.get(f"/sessions/{session_id}/export")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), answer.text


async def test_a_body_that_is_not_taken_is_not_read() -> None:
    body = RequestBody(10**12, 1000)
    body.stream()
    body.append(b"x" * (MAX_WAITING + 1))
    order: list[str] = []
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            await body.has_room()
            order.append("room")
            body.set_complete()

        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        order.append("taken")
        size = sum([len(part) async for part in body.parts(30)])
    assert (order, size) == (["taken", "room"], MAX_WAITING + 1)


async def test_a_body_that_stops_is_refused() -> None:
    body = RequestBody(None, None)
    body.stream()
    with pytest.raises(InvalidRequest, match="nothing came"):
        _ = [part async for part in body.parts(0.01)]


async def test_a_body_that_comes_after_a_pause_of_the_daemon_is_taken() -> None:
    body = RequestBody(None, None)
    body.stream()
    async with anyio.create_task_group() as tasks:

        async def send() -> None:
            await anyio.wait_all_tasks_blocked()
            body.append(b"late")
            body.set_complete()

        tasks.start_soon(send)
        assert [part async for part in body.parts(0)] == [b"late"]


async def test_lines_are_encoded_in_short_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a long line does not keep other callers waiting."""
    turns: list[float] = []

    def encoded(writer: Writer, rows: list[Any]) -> Iterator[bytes]:
        turns.append(sys.getswitchinterval())
        return lines(writer, rows)

    lines = exports.rows_as_lines
    monkeypatch.setattr(exports, "rows_as_lines", encoded)
    async with serving(tmp_path) as server:
        await file_of_a_session(server)
    assert turns
    assert max(turns) == pytest.approx(SHORT_TURN_S, abs=1e-5)


@pytest.mark.parametrize(
    ("limit", "value", "details"),
    [
        ("MAX_LINES", 3, {"line": 4, "limit_lines": 3}),
        ("MAX_LINE", 100, {"line": 1, "limit_bytes": 100}),
        ("MAX_FILE", 100, {"line": 1, "limit_bytes": 100}),
    ],
)
async def test_a_file_that_is_too_long_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, details: dict[str, int]
) -> None:
    async with serving(tmp_path) as server:
        file = await file_of_a_session(server)
        monkeypatch.setattr(session_file, limit, value)
        answer = await server.client.post(IMPORT, content=file, headers=LINES)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (413, "payload_too_large"), answer.text
        assert error["details"] == details
        assert len(await sessions(server)) == 1


async def test_a_disk_that_is_full_while_a_file_is_stored_has_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:
        file = lengthened(await file_of_a_session(server), 1000)
        events = await server.event_count()

        async def refused() -> tuple[int, dict[str, Any]]:
            answer = await server.client.post(IMPORT, content=file, headers=LINES)
            assert answer.status_code == 503, answer.text
            error = answer.json()["error"]
            assert error.keys() == {"code", "message", "details"}
            assert error["code"] == "unavailable"
            assert len(await sessions(server)) == 1
            assert await server.event_count() == events
            assert server.engine.core.imports.count == 0
            return int(answer.headers["Retry-After"]), error

        # The disk of the files that are being checked, and that of the database.
        with monkeypatch.context() as patched:
            patched.setattr(imports, "_open", lambda _: open_full())
            retry_s, error = await refused()
            assert retry_s == imports.RETRY_S
            assert "No space left" in error["message"]
        pages = await server.store.transact(lambda tx: tx._connection.pragma("page_count"))
        await server.store.transact(lambda tx: tx._connection.pragma("max_page_count", pages + 100))
        retry_s, error = await refused()
        assert retry_s >= 1
        assert error["details"]["problem"] == "disk_full"
        await server.store.transact(lambda tx: tx._connection.pragma("max_page_count", 1_000_000))
        answer = await server.client.post(IMPORT, content=file, headers=LINES)
        assert answer.status_code == 201, answer.text
        assert answer.json()["events"] > 1000
        assert len(await sessions(server)) == 2


def test_a_daemon_that_is_killed_while_it_stores_a_file_has_nothing_of_it(tmp_path: Path) -> None:
    log = tmp_path / ".data" / "agent-orchestrator.db-wal"
    answers: list[httpx.Response] = []
    with agentd(tmp_path) as daemon:
        made = call(daemon, "POST", "/sessions", json={"provider": "manual", "text": "said"})
        session = made["session"]["id"]
        # SQLite writes to its log before the commit, because this is more than its cache.
        file = lengthened(httpx.get(f"{daemon.url}/sessions/{session}/export").content, 8000)
        size = log.stat().st_size

        def send() -> None:
            with suppress(httpx.TransportError):
                url = daemon.url + IMPORT
                answers.append(httpx.post(url, content=file, headers=LINES, timeout=120))

        sender = Thread(target=send)
        sender.start()
        try:
            wait_for(lambda: log.stat().st_size > size + 2**20, "the file is being stored")
        finally:
            daemon.signal(signal.SIGKILL)
            sender.join()
        daemon.wait()
    assert answers == []
    (tmp_path / "ready.json").unlink()
    with agentd(tmp_path) as daemon:
        assert [one["id"] for one in call(daemon, "GET", "/sessions")["sessions"]] == [session]
        assert len(call(daemon, "GET", "/runs")["runs"]) == 1
        assert call(daemon, "GET", "/daemon/check")["findings"] == []
        again = call(daemon, "POST", IMPORT, content=file, headers=LINES)
        assert again["events"] > 8000
        assert call(daemon, "GET", "/daemon/check")["findings"] == []


@pytest.mark.parametrize("size", [1, 8 * 2**10])
async def test_a_body_that_trickles_is_refused(size: int) -> None:
    body = RequestBody(None, None)
    body.stream()
    async with anyio.create_task_group() as tasks:

        async def send() -> None:
            while True:
                body.append(bytes(size))
                await anyio.sleep(0.02)

        tasks.start_soon(send)
        with anyio.fail_after(20), pytest.raises(InvalidRequest, match="came within"):
            _ = [part async for part in body.parts(0.1)]
        tasks.cancel_scope.cancel()


async def test_a_file_that_is_sent_counts_as_a_stream(tmp_path: Path) -> None:
    async with serving(tmp_path, max_streams=1) as server:
        path = f"/sessions/{answer_id(await file_of_a_session(server))}/export"
        async with server.client.stream("GET", "/stream") as stream:
            assert stream.status_code == 200
            refused = await server.client.get(path)
            assert refused.status_code == 429, refused.text
            assert refused.json()["error"]["code"] == "rate_limited"
        await until(lambda: server.metrics.streams == 0, "the stream has ended")
        assert (await server.client.get(path)).status_code == 200
        assert server.metrics.streams == 0
