"""Paths that are protected from agents, by their workspace and the place of the database."""

from pathlib import Path

import pytest

from agent_orchestrator import open_embedded
from agent_orchestrator.data_directory import make_data_directory
from agent_orchestrator.ports.runner import Outcome, ProtectedPaths, RunContext
from agent_orchestrator.protection import Protection
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.user_state import user_state


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = user_state()
    assert found is not None
    found.root.mkdir(parents=True)
    return found.root


def _files(directory: Path, *names: str) -> set[str]:
    return {str(directory / name) for name in names}


def test_directory_made_for_the_database_is_protected_as_a_whole(
    tmp_path: Path, state: Path
) -> None:
    database = tmp_path / ".data" / "main.db"
    make_data_directory(database.parent)
    database.touch()
    found = Protection(database)("/")
    assert set(found.read_only) == {str(database.parent)}
    assert set(found.secret) == {str(database), str(state)}


def test_database_files_in_another_directory_are_protected_one_by_one(
    tmp_path: Path, state: Path
) -> None:
    database = tmp_path / "main.db"
    for name in ("main.db", "main.db-wal", "main.db.lock", "other"):
        (tmp_path / name).touch()
    found = Protection(database)("/")
    assert set(found.read_only) == _files(tmp_path, "main.db.lock")
    assert set(found.secret) == {*_files(tmp_path, "main.db", "main.db-wal"), str(state)}


def test_optional_file_is_protected_while_it_exists(tmp_path: Path) -> None:
    named, optional, hidden = (tmp_path / name for name in ("named", "optional", "hidden"))
    kept = Protection(None, (named, optional), (hidden,), frozenset({optional, hidden}))
    assert set(kept("/").read_only) == {str(named)}
    assert str(hidden) not in kept("/").secret
    optional.touch()
    hidden.symlink_to(optional)
    assert set(kept("/").read_only) == {str(named), str(optional)}
    assert str(optional) in kept("/").secret  # what the link leads to


def test_symbolic_links_are_followed_to_the_protected_paths(tmp_path: Path) -> None:
    make_data_directory(tmp_path / "real")
    (tmp_path / "real" / "a.db").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "agentd.toml").symlink_to(tmp_path / "real" / "config")
    found = Protection(tmp_path / "link" / "a.db", (tmp_path / "agentd.toml",))("/")
    assert set(found.read_only) == {*_files(tmp_path, "real"), *_files(tmp_path / "real", "config")}
    assert str(tmp_path / "real" / "a.db") in found.secret


def test_database_of_another_daemon_in_the_workspace_is_protected(tmp_path: Path) -> None:
    other = tmp_path / "repository" / ".data" / "agent-orchestrator.db"
    make_data_directory(other.parent)
    other.touch()
    found = Protection(None)(str(tmp_path / "repository"))
    assert set(found.read_only) == {str(other.parent)}
    assert str(other) in found.secret
    for odd in ("/" + "x" * 300, "/proc/1/cwd", str(other)):
        assert Protection(None)(odd).read_only == ()


@pytest.mark.anyio
async def test_embedded_engine_protects_its_database(tmp_path: Path) -> None:
    seen: list[ProtectedPaths] = []

    async def agent(context: RunContext) -> Outcome:
        seen.append(context.protected)
        return Outcome("")

    async with open_embedded(
        tmp_path / "made" / "a.db", runners=[FunctionRunner("agent", agent)]
    ) as client:
        session = await client.create_session(cwd=str(tmp_path))
        sent = await client.send_message(session.id, "hi")
        await client.wait_run(sent.run.id)
    assert set(seen[0].read_only) == {str(tmp_path / "made")}
    assert str(tmp_path / "made" / "a.db") in seen[0].secret
