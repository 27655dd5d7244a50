"""Streams: every event once and in order, from any cursor, whatever the reader does."""

import json
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from pace import allowed
from serving import Serving, serving, sse_reader, until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from agentd import http1

pytestmark = pytest.mark.anyio

TOKEN = "correct-horse-battery-staple"


def ws_url(server: Serving, query: str = "") -> str:
    return server.url.replace("http", "ws") + "/stream" + query


async def receive(connection: ClientConnection) -> dict[str, Any]:
    with anyio.fail_after(45):
        frame: dict[str, Any] = json.loads(await connection.recv())
        return frame


def caught_up(cursor: str, server: Serving) -> dict[str, Any]:
    return {"type": "caught_up", "cursor": cursor, "epoch": server.store._database.epoch}


async def read_sse(server: Serving, path: str, count: int, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with anyio.fail_after(45):
        async with sse_reader(server.client, path, **more) as frames:
            while len(found) < count:
                frame = await anext(frames)
                event = json.loads(frame.data)
                assert frame.event == event["event_type"]
                assert frame.id
                found.append({**event, "id": frame.id})
    return found


async def test_stream_sends_history_and_then_new_events(server: Serving) -> None:
    session = await server.session()
    with anyio.fail_after(45):
        async with sse_reader(server.client, f"/stream?sessionId={session}") as frames:
            first = await anext(frames)
            assert (first.id, first.event) == ("1", "session.created")
            await server.say(session, "hello")
            seen = [first]
            while seen[-1].event != "run.completed":
                seen.append(await anext(frames))
    received = [json.loads(frame.data) for frame in seen]
    assert received == await server.events(session)
    assert [frame.id for frame in seen] == [str(n + 1) for n in range(len(seen))]


async def test_stream_resumed_at_any_cursor_sends_exactly_the_rest(server: Serving) -> None:
    session = await server.session()
    await server.say(session, "one")
    await server.say(session, "two")
    everything = await server.events(session)
    for cursor in range(len(everything)):
        rest = everything[cursor:]
        path = f"/stream?sessionId={session}"
        by_query = await read_sse(server, f"{path}&cursor={cursor}", len(rest))
        # The header overrides the cursor of the URL, which is older.
        by_header = await read_sse(
            server, f"{path}&cursor=0", len(rest), headers={"Last-Event-ID": str(cursor)}
        )
        for found in (by_query, by_header):
            assert [event["seq"] for event in found] == [event["seq"] for event in rest]


async def test_stream_of_several_sessions_resumes_at_its_cursor(server: Serving) -> None:
    sessions = [await server.session() for _ in range(3)]
    for session in sessions:
        await server.say(session, "hello")
    total = await server.event_count()
    for query in ("", "&".join(f"sessionId={session}" for session in sessions)):
        everything = await read_sse(server, f"/stream?{query}", total)
        assert len({(event["session_id"], event["seq"]) for event in everything}) == total
        cursor = everything[total // 2]["id"]
        rest = await read_sse(
            server, f"/stream?{query}", total - total // 2 - 1, headers={"Last-Event-ID": cursor}
        )
        assert rest == everything[total // 2 + 1 :]
    first_two = await read_sse(
        server, f"/stream?session_id={sessions[0]}&sessionId={sessions[1]}", 2 * total // 3
    )
    assert {event["session_id"] for event in first_two} == set(sessions[:2])


async def test_quiet_stream_sends_keep_alives(tmp_path: Path) -> None:
    async with serving(tmp_path, keepalive_s=0.05) as server:
        session = await server.session()
        with anyio.fail_after(45):
            url = f"/stream?sessionId={session}&cursor=1"
            async with server.client.stream("GET", url) as response:
                text = ""
                async for chunk in response.aiter_text():
                    text += chunk
                    if text.count(": still here\n\n") >= 2:
                        break
            assert text.startswith(": caught up\n\n")
            async with connect(ws_url(server, f"?sessionId={session}&cursor=1")) as reader:
                assert await receive(reader) == caught_up("1", server)
                assert await receive(reader) == {"type": "ping"}


async def test_readers_that_disconnected_leave_no_subscription(server: Serving) -> None:
    session = await server.session()
    for round_ in range(10):
        for path in (f"/stream?sessionId={session}", "/stream"):
            async with sse_reader(server.client, path) as frames:
                await anext(frames)
            async with connect(ws_url(server, path.removeprefix("/stream"))) as reader:
                await receive(reader)
        for _ in range(5):
            connection = socket.create_connection(server.address)
            connection.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if round_ % 2:
                # Reset the connection instead of closing it in order.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
    async with connect(ws_url(server)) as last:
        await receive(last)  # connections are accepted in order, so all earlier ones were
    await until(lambda: server.readers == 0, "the places of all readers are given up")


async def test_slow_reader_does_not_block_others_and_misses_nothing(server: Serving) -> None:
    session = await server.session("talkative")
    stalled = []
    try:
        for _ in range(5):
            stalled.append(stalled_reader(server, session))
        # 4 MB of events: more than the buffers between hold.
        await server.say(session, "4000")
        started = time.perf_counter()
        assert (await server.client.get("/health")).status_code == 200
        assert time.perf_counter() - started < allowed(1)
        await anyio.to_thread.run_sync(
            check_whole_stream, stalled[0], len(await server.events(session))
        )
    finally:
        for connection in stalled:
            connection.close()
    await until(lambda: server.readers == 0, "the places of all readers are given up")


def stalled_reader(server: Serving, session: str) -> socket.socket:
    """Open a stream and read nothing from it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.connect(server.address)
    request = f"GET /stream?sessionId={session} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connection.sendall(request.encode())
    return connection


def check_whole_stream(connection: socket.socket, count: int) -> None:
    """Read all events of a stream late; none may be missing."""
    connection.settimeout(60)
    data, seen = b"", 0
    while seen < count:
        chunk = connection.recv(1 << 20)
        assert chunk, "the stream ended"
        data += chunk
        *lines, data = data.split(b"\n")
        for line in lines:
            if line.startswith(b"id: "):
                seen += 1
                assert line == b"id: %d" % seen


async def test_memory_for_stalled_readers_is_bounded(server: Serving) -> None:
    import psutil

    session = await server.session("talkative")
    await server.say(session, "10000")
    before = psutil.Process().memory_info().rss
    stalled = []
    try:
        for _ in range(40):
            stalled.append(stalled_reader(server, session))
        await until(lambda: server.readers > 0, "the readers are there")
        last = -1
        while last != (now := psutil.Process().memory_info().rss):
            last = now
            await anyio.sleep(0.3)
        # The 400 MB of their events are not buffered.
        assert now - before < 100 * 1024 * 1024
    finally:
        for connection in stalled:
            connection.close()


def stalled_socket(server: Serving, session: str) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.connect(server.address)
    lines = [
        f"GET /stream?sessionId={session} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def stalled_page(server: Serving, session: str) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    connection.connect(server.address)
    path = f"/sessions/{session}/events?limit=1000"
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 20)
    return connection


@pytest.mark.parametrize("stalled", [stalled_reader, stalled_socket, stalled_page])
async def test_stalled_readers_are_disconnected(
    server: Serving, monkeypatch: pytest.MonkeyPatch, stalled: Callable[..., socket.socket]
) -> None:
    monkeypatch.setattr(http1, "STALL_S", 0.3)
    session = await server.session("talkative")
    await server.say(session, "4000")
    connections = []
    try:
        for _ in range(20):
            connections.append(stalled(server, session))
        for connection in connections:
            poll = select.poll()
            poll.register(connection, select.POLLRDHUP)
            found = await anyio.to_thread.run_sync(poll.poll, 60_000)
            assert found, "the connection is still open"
        assert (await server.client.get("/health")).status_code == 200
    finally:
        for connection in connections:
            connection.close()
    await until(lambda: server.readers == 0, "the places of all readers are given up")


async def test_slow_reader_is_not_disconnected(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "STALL_S", 4.0)
    session = await server.session("talkative")
    await server.say(session, "2000")
    with stalled_reader(server, session) as connection:
        size, times = 0, 0
        with anyio.fail_after(60):
            while times < 22:  # more than twice the time in all
                got = await anyio.to_thread.run_sync(connection.recv, 100_000)
                assert got
                size, times = size + len(got), times + 1
                await anyio.sleep(0.4)
    assert size


async def test_shutdown_ends_streams_and_waits(server: Serving) -> None:
    session = await server.session("forever")
    run = await server.say(session, "go", wait=False)
    async with (
        sse_reader(server.client, "/stream") as frames,
        connect(ws_url(server)) as reader,
        anyio.create_task_group() as tasks,
    ):
        await anext(frames)
        answers = []

        async def wait(path: str) -> None:
            answers.append(await server.client.get(path))

        tasks.start_soon(wait, f"/runs/{run}/wait?timeout_s=60")
        events = await server.events(session)
        with anyio.fail_after(45):
            while events[-1]["event_type"] != "agent.message":
                events = await server.events(session)
        seq = events[-1]["seq"]
        tasks.start_soon(wait, f"/sessions/{session}/events?cursor={seq}&wait_s=60")
        await until(lambda: len(server.lifetime._until_closing) == 4, "all four wait")
        server.lifetime.close()
        with anyio.fail_after(60):
            async for _ in frames:
                pass
            async for _ in reader:
                pass
            assert reader.close_code == 1001
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[0].headers["Retry-After"] == "5"


async def test_streams_announce_a_drain_and_go_on_until_the_shutdown(server: Serving) -> None:
    session = await server.session("forever")
    received: list[str] = []

    async def read() -> None:
        async with server.client.stream("GET", f"/stream?sessionId={session}") as response:
            async for text in response.aiter_text():
                received.append(text)

    async with connect(ws_url(server, f"?sessionId={session}")) as reader:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await until(lambda: ": caught up" in "".join(received), "the stream is caught up")
            frames = [await receive(reader) for _ in range(2)]
            assert frames[-1]["type"] == "caught_up"
            server.lifetime.drain()
            await until(lambda: ": draining" in "".join(received), "the stream is told")
            with anyio.fail_after(45):
                assert await receive(reader) == {"type": "draining"}
            # Events are still sent, and the drain is announced once.
            await server.say(session, "go", wait=False)
            await until(lambda: "event: agent.message" in "".join(received), "the stream goes on")
            while (frame := await receive(reader))["type"] == "event":
                if frame["event"]["event_type"] == "agent.message":
                    break
            server.lifetime.close()
            with anyio.fail_after(45):
                last = [json.loads(frame) async for frame in reader]
        assert last[-1]["type"] == "error"
        assert last[-1]["error"]["code"] == "unavailable"
        assert [frame["type"] for frame in last].count("draining") == 0
        assert reader.close_code == 1001
    assert "".join(received).count(": draining\n\n") == 1
    assert "".join(received).endswith(": stopping\n\n")


async def test_stream_opened_during_a_drain_announces_it(server: Serving) -> None:
    session = await server.session()
    server.lifetime.drain()
    async with connect(ws_url(server, f"?sessionId={session}")) as reader:
        with anyio.fail_after(45):
            frames = [await receive(reader) for _ in range(3)]
    assert [frame["type"] for frame in frames] == ["draining", "event", "caught_up"]


# --- WebSocket ------------------------------------------------------------------------------


async def test_websocket_sends_history_and_then_new_events(server: Serving) -> None:
    session = await server.session()
    async with connect(ws_url(server, f"?sessionId={session}")) as reader:
        first = await receive(reader)
        assert first["type"] == "event"
        assert first["cursor"] == "1"
        assert first["event"]["event_type"] == "session.created"
        assert await receive(reader) == caught_up("1", server)
        await server.say(session, "hello")
        events = [first["event"]]
        while events[-1]["event_type"] != "run.completed":
            events.append((await receive(reader))["event"])
    assert events == await server.events(session)
    async with connect(ws_url(server, f"?sessionId={session}&cursor=3")) as reader:
        assert (await receive(reader))["event"]["seq"] == 4


async def test_readers_below_what_is_kept_are_told_where_to_go_on(server: Serving) -> None:
    session = await server.session()
    await server.say(session, "hello")
    last = len(await server.events(session))
    first_feed = (await read_sse(server, "/stream", 1))[0]["id"]
    pruned = await server.client.post(f"/sessions/{session}/prune", json={"retain_events": 2})
    assert pruned.status_code == 200, pruned.text
    oldest = last - 2
    for query in (f"?sessionId={session}&cursor=1", f"?cursor={first_feed}"):
        refused = await server.client.get(f"/stream{query}")
        assert refused.status_code == 410
        details = refused.json()["error"]["details"]
        async with connect(ws_url(server, query)) as reader:
            frame = await receive(reader)
            assert (frame["type"], frame["error"]["code"]) == ("error", "gone")
            assert frame["error"]["details"] == details
            with pytest.raises(ConnectionClosed):
                await reader.recv()
            assert reader.close_code == 4410
        onward = query.partition("cursor=")[0] + f"cursor={details['oldest']}"
        async with connect(ws_url(server, onward)) as reader:
            got = [(await receive(reader))["event"]["seq"] for _ in range(2)]
        assert got == [oldest + 1, oldest + 2]
        if "sessionId" in query:
            assert details["oldest"] == oldest


async def test_websocket_accepts_a_token_in_header_protocol_or_first_frame(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(TOKEN,)) as server:
        await server.session()
        async with connect(
            ws_url(server), additional_headers={"Authorization": f"Bearer {TOKEN}"}
        ) as reader:
            assert (await receive(reader))["type"] == "event"
        async with connect(ws_url(server), subprotocols=["other", f"bearer.{TOKEN}"]) as reader:  # type: ignore[list-item]
            assert reader.subprotocol == f"bearer.{TOKEN}"
            assert (await receive(reader))["type"] == "event"
        async with connect(ws_url(server)) as reader:
            await reader.send(json.dumps({"type": "auth", "token": TOKEN}))
            assert (await receive(reader))["type"] == "event"


@pytest.mark.parametrize(
    "frame",
    ['{"type": "auth", "token": "wrong"}', '{"type": "auth"}', '{"type": "hello"}', "[]", "7"],
)
async def test_websocket_with_a_wrong_first_frame_is_closed(tmp_path: Path, frame: str) -> None:
    async with serving(tmp_path, tokens=(TOKEN,)) as server:
        async with connect(ws_url(server)) as reader:
            await reader.send(frame)
            await check_end(reader, "unauthorized", 4401)
        assert server.readers == 0


async def test_websocket_without_a_first_frame_is_closed(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, tokens=(TOKEN,), auth_frame_s=0.05) as server,
        connect(ws_url(server)) as reader,
    ):
        await check_end(reader, "unauthorized", 4401)


async def check_end(reader: ClientConnection, code: str, close: int) -> None:
    frame = await receive(reader)
    assert frame["type"] == "error"
    assert frame["error"]["code"] == code
    with pytest.raises(ConnectionClosed) as closed:
        await receive(reader)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (close, code)


async def test_websocket_errors_are_sent_as_a_frame_before_the_close(server: Serving) -> None:
    session = await server.session()
    for query, code, close in [
        ("?sessionId=ses_none", "not_found", 4404),
        (f"?sessionId={session}&cursor=99", "cursor_ahead", 4409),
        (f"?sessionId={session}&cursor=x", "invalid_request", 4400),
        ("?nonsense=1", "invalid_request", 4400),
    ]:
        async with connect(ws_url(server, query)) as reader:
            await check_end(reader, code, close)


async def test_messages_of_a_websocket_reader_are_ignored_and_not_buffered(server: Serving) -> None:
    session = await server.session()
    async with connect(ws_url(server, f"?sessionId={session}")) as reader:
        await receive(reader)
        for _ in range(200):
            await reader.send("x" * 1000)
        await reader.send(b"\x00\xff")
        await server.say(session, "hello")
        assert (await receive(reader))["type"] in ("caught_up", "event")
    async with connect(ws_url(server)) as reader:
        await reader.send("x" * 100_000)
        with pytest.raises(ConnectionClosed), anyio.fail_after(45):
            async for _ in reader:
                pass
        assert reader.close_code == 1009
