"""What agents report of their changes, in any shape, is bounded and harmless."""

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, Outcome, RunContext, open_embedded
from agent_orchestrator.engine import diffs
from agent_orchestrator.operations.sessions import FileChange
from agent_orchestrator.wire import long_json

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


class Changing:
    """A runner that reports the given events."""

    name = "changing"

    def __init__(self, *reported: Any) -> None:
        self.reported = reported

    async def run(self, context: RunContext) -> Outcome:
        for data in self.reported:
            await context.emit("file.changed", data)
        return Outcome("done")


async def changed_session(client: Client, directory: Path) -> str:
    session = await client.create_session(cwd=str(directory), provider="changing")
    reply = await client.send_message(session.id, "go")
    assert reply.run is not None
    await client.wait_run(reply.run.id, timeout_s=60)
    return session.id


async def test_reported_changes_of_any_shape_are_read(tmp_path: Path) -> None:
    reported = (
        {"status": "completed", "changes": [{"path": "a", "kind": "add", "diff": "x\n"}]},
        {"status": "failed", "changes": [{"path": "not", "kind": "add"}]},
        {"changes": "none"},
        {"changes": [None, 7, {"path": ["p"], "kind": {"k": 1}, "diff": 5}, {}]},
        {"changes": [{"path": "x" * 10_000, "kind": "delete", "diff": "gone\n"}]},
    )
    async with open_embedded(":memory:", runners=[Changing(*reported)]) as client:
        diff = await client.get_diff(await changed_session(client, tmp_path))
    assert diff.changes == (
        FileChange("a", "add", "x\n"),
        FileChange("['p']", "update", None),
        FileChange("None", "update", None),
        FileChange("x" * 4096, "delete", "gone\n"),
    )
    assert (diff.source, diff.is_truncated) == ("events", False)


async def test_reported_changes_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffs, "MAX_FILES", 5)
    monkeypatch.setattr(diffs, "MAX_CHARACTERS", 10)
    events = [{"changes": [{"path": str(n), "kind": "add", "diff": "xxxx"}]} for n in range(9)]
    async with open_embedded(":memory:", runners=[Changing(*events)]) as client:
        session = await changed_session(client, tmp_path)
        diff = await client.get_diff(session)
        assert [one.path for one in diff.changes] == ["0", "1", "2", "3", "4"]
        assert [one.diff for one in diff.changes] == ["xxxx", "xxxx", None, None, None]
        assert diff.is_truncated
        monkeypatch.setattr(diffs, "MAX_EVENTS", 4)  # the last changes, before the run's end
        diff = await client.get_diff(session)
        assert [one.path for one in diff.changes] == ["6", "7", "8"]
        assert diff.is_truncated


async def test_changes_that_retention_has_deleted_are_said_to_be_left_out(tmp_path: Path) -> None:
    events = [{"changes": [{"path": str(n), "kind": "add"}]} for n in range(3)]
    async with open_embedded(":memory:", runners=[Changing(*events)]) as client:
        session = await changed_session(client, tmp_path)
        assert not (await client.get_diff(session)).is_truncated
        await client.prune_session(session, retain_events=3)  # the last change, and the end
        diff = await client.get_diff(session)
        assert diff.is_truncated
        assert "0" not in [one.path for one in diff.changes]


async def test_files_that_agents_are_denied_are_not_shown(tmp_path: Path) -> None:
    """The database of the engine is in the directory that the agents work in."""
    await anyio.run_process(["git", "init", "-q", str(tmp_path)])
    async with open_embedded(tmp_path / ".data" / "a.db", runners=[Changing()]) as client:
        session = await client.create_session(cwd=str(tmp_path))
        (tmp_path / ".data" / "notes.txt").write_text("secret")
        (tmp_path / "seen.txt").write_text("seen")
        diff = await client.get_diff(session.id)
    assert [(one.path, one.diff) for one in diff.changes] == [("seen.txt", "seen")]


async def test_long_reported_changes_are_decoded_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: list[int] = []

    def loads(data: bytes) -> Any:
        decoders.append(threading.get_ident())
        return decode(data)

    decode = long_json.loads
    monkeypatch.setattr(long_json, "loads", loads)
    change = {"path": "a", "kind": "add", "diff": "中\n" * 100_000}
    runner = Changing({"changes": [change]})
    async with open_embedded(tmp_path / "a.db", runners=[runner]) as client:
        diff = await client.get_diff(await changed_session(client, tmp_path))
    assert diff.changes == (FileChange("a", "add", "中\n" * 100_000),)
    assert decoders
    assert threading.get_ident() not in decoders
