"""Acknowledged commits that are gone: the next start detects it, whatever the cause."""

import os
import shutil
import signal
import sys
from pathlib import Path

import anyio
import apsw
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator.domain.errors import CommitsLost, StoreDamaged
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.schema import APPLICATION_ID, migrations
from agent_orchestrator.stores.sqlite.watermark import SLOTS, Watermark, WatermarkFile
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

_WRITER = """
import sys, anyio
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

async def main():
    async with SqliteStore(sys.argv[1]) as store:
        session = a_session()
        await put(store, session)
        for number in range(40):
            await store.transact(lambda tx: tx.append(session.id, drafts(str(number)), NOW))
        while store._noted_watermark != store._health.watermark:
            await anyio.sleep(0.01)
        print(session.id, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def killed(path: Path) -> str:
    """Make a database with 40 events and kill its process, so that they are only in the log."""
    with anyio.fail_after(60):
        async with await anyio.open_process(
            [sys.executable, "-c", _WRITER, str(path)], stderr=None
        ) as process:
            assert process.stdout is not None
            session_id = (await process.stdout.receive()).decode().strip()
            process.send_signal(signal.SIGKILL)
            await process.wait()
    return session_id


async def make(path: Path, *texts: str) -> str:
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            for text in texts:
                await store.transact(lambda tx, t=text: tx.append(session.id, drafts(t), NOW))
    return session.id


def watermark_file(path: Path) -> Path:
    return path.with_name(path.name + ".commits")


def commits(path: Path) -> int:
    found = WatermarkFile(path).read()
    assert found is not None
    return found.commits


async def problems(path: Path) -> list[str]:
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            return [problem.code for problem in await store.problems()]


async def test_watermark_counts_each_commit_once_and_no_empty_change(tmp_path):
    path = tmp_path / "data.db"
    session_id = await make(path, "a", "b")
    assert commits(path) == 3
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await store.transact(lambda tx: tx.session(session_id))
            await store.transact(lambda tx: tx.notify("x"))
            assert store._health.watermark.commits == 3
            await store.transact(lambda tx: tx.append(session_id, drafts("c"), NOW))
            assert store._health.watermark.commits == 4
    assert commits(path) == 4
    assert watermark_file(path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("where", [0.0, 0.5, 0.9])
async def test_damaged_write_ahead_log_is_detected_at_the_start(tmp_path, where):
    """SQLite reads the log up to the damage and calls the result sound."""
    path = tmp_path / "data.db"
    session_id = await killed(path)
    log = tmp_path / "data.db-wal"
    text = bytearray(log.read_bytes())
    place = int(len(text) * where)
    text[place : place + 64] = bytes(byte ^ 0xFF for byte in text[place : place + 64])
    log.write_bytes(text)
    before = path.read_bytes(), log.read_bytes(), watermark_file(path).read_bytes()
    for _ in range(2):
        with pytest.raises(CommitsLost, match=r"[1-9]\d* commits lost .*--accept-loss") as raised:
            async with SqliteStore(path):
                pytest.fail("opened")
        assert str(path) in str(raised.value)
        assert (path.read_bytes(), log.read_bytes(), watermark_file(path).read_bytes()) == before
    with anyio.fail_after(60):
        async with SqliteStore(path, accept_loss=True) as store:
            assert [problem.code for problem in await store.problems()] == ["commits_lost"]
            session = await store.read(lambda view: view.session(session_id))
            assert session is None or session.last_seq < 40
            await put(store, a_session())
    assert await problems(path) == []


async def test_killed_process_loses_no_commit_and_reports_none_lost(tmp_path):
    path = tmp_path / "data.db"
    session_id = await killed(path)
    assert await problems(path) == []
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = await store.read(lambda view: view.session(session_id))
            assert session is not None
            assert session.last_seq == 40


async def test_older_copy_of_the_database_in_its_place_is_refused(tmp_path):
    path = tmp_path / "data.db"
    session_id = await make(path, "a")
    shutil.copy(path, tmp_path / "old.db")
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await store.transact(lambda tx: tx.append(session_id, drafts("b"), NOW))
    shutil.copy(tmp_path / "old.db", path)
    with pytest.raises(CommitsLost, match="1 commits lost"):
        async with SqliteStore(path):
            pytest.fail("opened")


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 100, b"{}", b"[1]", b'{"database": "x", "commits": 1, "check": "0"}\n']
)
async def test_a_damaged_watermark_is_a_problem_until_the_next_start(tmp_path, text):
    path = tmp_path / "data.db"
    await make(path, "a")
    watermark_file(path).write_bytes(text)
    assert await problems(path) == ["watermark_unusable"]
    assert commits(path) == 2
    assert await problems(path) == []


async def test_a_watermark_of_another_database_is_a_problem_until_the_next_start(tmp_path):
    path, other = tmp_path / "data.db", tmp_path / "other.db"
    await make(path, "a")
    await make(other, "a", "b", "c")
    shutil.copy(watermark_file(other), watermark_file(path))
    assert await problems(path) == ["watermark_unusable"]
    assert await problems(path) == []


async def test_emptied_database_is_refused_and_a_removed_one_is_a_problem(
    tmp_path,
):
    path = tmp_path / "data.db"
    await make(path, "a", "b")
    path.write_bytes(b"")
    with pytest.raises(CommitsLost, match="3 commits lost"):
        async with SqliteStore(path):
            pytest.fail("opened")
    path.unlink()
    assert await problems(path) == ["watermark_unusable"]


async def test_a_missing_watermark_is_a_problem(tmp_path):
    path = tmp_path / "data.db"
    await make(path, "a")
    watermark_file(path).unlink()
    assert await problems(path) == ["watermark_unusable"]
    assert commits(path) == 2
    assert await problems(path) == []


async def test_a_log_lost_together_with_the_watermark_is_a_problem(tmp_path):
    path = tmp_path / "data.db"
    await make(path, "a")
    await killed(path)
    (tmp_path / "data.db-wal").unlink()
    watermark_file(path).unlink()
    assert await problems(path) == ["watermark_unusable"]


async def test_a_new_database_has_a_watermark_from_the_start(tmp_path):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path):
            assert watermark_file(path).exists()
    assert await problems(path) == []


async def test_backup_opened_elsewhere_has_its_own_watermark(tmp_path):
    path, other = tmp_path / "data.db", tmp_path / "elsewhere" / "data.db"
    other.parent.mkdir()
    await make(path, "a", "b")
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await store.back_up(other, replace=False)
    assert await problems(other) == []
    watermark_file(other).unlink()
    assert await problems(other) == ["watermark_unusable"]


async def test_a_watermark_that_cannot_be_written_is_a_problem(tmp_path):
    path = tmp_path / "data.db"
    watermark_file(path).with_name("data.db.commits.new").mkdir()
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            while not (found := await store.problems()):
                await anyio.sleep(0.01)
            assert [problem.code for problem in found] == ["watermark_failed"]
            watermark_file(path).with_name("data.db.commits.new").rmdir()
            await put(store, a_session())
    assert commits(path) == 1


async def test_write_ahead_log_of_another_database_is_refused(tmp_path):
    """A database was restored without removing its old log."""
    path, other = tmp_path / "data.db", tmp_path / "other.db"
    await killed(path)
    await make(other, "a")
    shutil.copy(other, path)
    with pytest.raises(StoreDamaged, match=r"another database|damaged"):
        async with SqliteStore(path):
            pytest.fail("opened")


async def test_database_of_an_older_schema_gets_a_watermark(tmp_path):
    path = tmp_path / "data.db"
    connection = apsw.Connection(str(path))
    connection.execute(migrations()[0])
    connection.pragma("application_id", APPLICATION_ID)
    connection.pragma("user_version", 1)
    connection.close()
    await make(path, "a")
    assert commits(path) == 2


async def test_watermark_file_survives_a_broken_write(tmp_path):
    path = tmp_path / "data.db"
    copy = WatermarkFile(path)
    copy.write(Watermark("name", 1))
    inode = watermark_file(path).stat().st_ino
    for commits in (5, 9, 7, 8):  # after commits were lost the counter can be lower
        copy.write(Watermark("name", commits))
        assert copy.read() == Watermark("name", commits)
    assert watermark_file(path).stat().st_ino == inode
    whole = watermark_file(path).read_bytes()
    results = set()
    for place in SLOTS:
        watermark_file(path).write_bytes(whole[:place] + b"\0" * 100 + whole[place + 100 :])
        results.add(copy.read().commits)
    assert results == {7, 8}


@pytest.mark.parametrize("link", [os.link, os.symlink])
async def test_watermark_is_not_written_through_a_link(tmp_path, link):
    path, other = tmp_path / "data.db", tmp_path / "other"
    WatermarkFile(tmp_path / "name").write(Watermark("name", 1))
    watermark_file(tmp_path / "name").replace(other)
    before = other.read_bytes()
    link(other, watermark_file(path))
    WatermarkFile(path).write(Watermark("name", 2))
    assert other.read_bytes() == before
    assert WatermarkFile(path).read() == Watermark("name", 2)
    assert not watermark_file(path).is_symlink()
