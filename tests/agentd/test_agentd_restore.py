"""A reader comes back after a restore: each way to read a log detects a lost cursor."""

import json
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest
from serving import Serving, serving, sse_reader
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed

from agent_orchestrator import Client, open_embedded
from agent_orchestrator import connect as connect_client
from agent_orchestrator.domain.errors import CursorAhead
from agent_orchestrator.operations.events import StreamRequest
from agent_orchestrator.testing import ScriptedRunner

pytestmark = pytest.mark.anyio


async def lived_on(directory: Path) -> dict[str, Any]:
    """Back up, go on, restore; return the cursors of a reader of the lost part."""
    async with serving(directory) as server:
        session = await server.session()
        await server.say(session, "kept")
        await server.client.post("/daemon/backup", json={"path": str(directory / "backup.db")})
        kept = len(await server.events(session))
        await server.say(session, "lost")
        page = (await server.client.get(f"/sessions/{session}/events?limit=1000")).json()
        async with sse_reader(server.client, "/stream") as frames:
            several = [await anext(frames) for _ in page["events"]]
        async with server.client.stream("GET", f"/stream?sessionId={session}") as one:
            assert one.headers["log-epoch"] == page["epoch"]
    shutil.copy(directory / "backup.db", directory / "data.db")
    return {
        "session": session,
        "kept": kept,
        "cursor": page["next_cursor"],
        "epoch": page["epoch"],
        "several": several[-1].id,
    }


async def refused(server: Serving, path: str, resume: int | str, **headers: str) -> None:
    answer = await server.client.get(path, headers=headers)
    assert answer.status_code == 409, answer.text
    error = answer.json()["error"]
    assert error["code"] == "cursor_ahead"
    assert error["details"]["resume_cursor"] == resume


async def test_cursor_of_a_lost_log_is_refused_by_every_read(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        before = await lived_on(tmp_path)
        session, kept, cursor, epoch = (before[n] for n in ("session", "kept", "cursor", "epoch"))
        events, one = f"/sessions/{session}/events", f"/stream?sessionId={session}"
        async with serving(tmp_path) as server:
            for text in ("new", "newer", "newest"):
                await server.say(session, text)
            assert len(await server.events(session)) > cursor
            await refused(server, f"{events}?cursor={cursor}&epoch={epoch}", kept)
            await refused(server, f"{events}?cursor={cursor}&epoch=other&wait_s=5", 0)
            await refused(server, f"{one}&cursor={cursor}&epoch={epoch}", kept)
            await refused(server, f"{one}&epoch={epoch}", kept, **{"Last-Event-ID": str(cursor)})
            await refused(server, f"/stream?cursor={before['several']}", str(kept))
            await refused(server, "/stream", str(kept), **{"Last-Event-ID": before["several"]})
            url = server.url.replace("http", "ws") + f"{one}&cursor={cursor}&epoch={epoch}"
            async with connect_socket(url) as socket:
                frame = json.loads(await socket.recv())
                assert frame["error"]["code"] == "cursor_ahead"
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
            # The resume cursor leads to the rest of this log, each event once.
            page = (
                await server.client.get(f"{events}?cursor={kept}&epoch={epoch}&limit=1000")
            ).json()
            assert page["events"][0]["seq"] == kept + 1
            assert page["epoch"] != epoch
            # Without an epoch only the number counts.
            assert (await server.client.get(f"{events}?cursor={cursor}")).status_code == 200
            async with connect_client(server.url) as client:
                await _refused_client(client, before)
                # Its stream has the epoch, and reconnects with it.
                stream = client.events(session, cursor=kept, epoch=epoch)
                seqs = [event.seq async for event in stream]
                assert seqs == list(range(kept + 1, kept + 1 + len(page["events"])))
                assert stream.epoch == page["epoch"]
        async with open_embedded(
            tmp_path / "data.db", runners=[ScriptedRunner()], max_concurrency=1
        ) as client:
            await _refused_client(client, before)


async def _refused_client(client: Client, before: dict[str, Any]) -> None:
    session, cursor, epoch = before["session"], before["cursor"], before["epoch"]
    with pytest.raises(CursorAhead) as raised:
        await client.list_events(session, cursor=cursor, epoch=epoch)
    assert raised.value.details["resume_cursor"] == before["kept"]
    for stream in (
        client.events(session, cursor=cursor, epoch=epoch),
        client.events(cursor=before["several"], follow=True),
    ):
        with pytest.raises(CursorAhead):
            await anext(aiter(stream))


async def test_cursors_stay_valid_after_a_plain_restart(tmp_path: Path) -> None:
    """A browser page reconnects with its first epoch and its last cursor."""
    with anyio.fail_after(60):
        async with serving(tmp_path) as server:
            session = await server.session()
            first = (await server.client.get(f"/sessions/{session}/events")).json()["epoch"]
        for number in range(3):
            async with serving(tmp_path) as server:
                await server.say(session, f"{number}")
                last = len(await server.events(session))
                page = f"/sessions/{session}/events?cursor={last}&epoch={first}"
                assert (await server.client.get(page)).status_code == 200
                await server.say(session, "more")
                query = f"/stream?sessionId={session}&epoch={first}"
                resumed = {"Last-Event-ID": str(last)}
                async with sse_reader(server.client, query, headers=resumed) as frames:
                    assert (await anext(frames)).id == str(last + 1)


async def test_stream_that_reconnects_with_its_epoch_detects_a_restore(tmp_path: Path) -> None:
    """The client keeps the epoch with the cursor, so a restore in between is detected."""
    with anyio.fail_after(60):
        async with serving(tmp_path) as server:
            session = await server.session()
            await server.say(session, "kept")
            kept = len(await server.events(session))
            await server.client.post("/daemon/backup", json={"path": str(tmp_path / "backup.db")})
            await server.say(session, "lost")
            async with connect_client(server.url) as client:
                request = StreamRequest((session,), "0")
                async with client.transport.subscribe(request) as subscription:
                    epoch = subscription.epoch
                    assert epoch is not None
                    items = list(await subscription.receive())
        shutil.copy(tmp_path / "backup.db", tmp_path / "data.db")
        async with serving(tmp_path) as server, connect_client(server.url) as client:
            await server.say(session, "new")
            cursor = max(int(item.cursor) for item in items)
            assert cursor > kept
            with pytest.raises(CursorAhead):
                async with client.transport.subscribe(
                    StreamRequest((session,), str(cursor), epoch)
                ):
                    pytest.fail("let in")


@pytest.mark.parametrize("query", ["epoch=", "epoch=a&epoch=b", "epoch=" + "x" * 300])
async def test_invalid_epoch_is_refused(server: Serving, query: str) -> None:
    session = await server.session()
    answer = await server.client.get(f"/stream?sessionId={session}&{query}")
    assert answer.status_code == 400
    assert list(answer.json()["error"]["details"]["fields"]) == ["epoch"]
