"""A database found in the working directory is opened only if its user has used it before."""

import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from driving import Result, run

from agent_orchestrator.data_directory import make_data_directory
from agent_orchestrator.domain.errors import ForeignDatabase, UnknownDatabase
from agent_orchestrator.known_databases import is_known, remember
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.user_state import UserState, user_state

DATABASE = Path(".data/agent-orchestrator.db")
CONFIG = '[providers.x]\nrunner = "command"\nargv = ["touch", "ran"]\n[routing]\ndefault = "x"\n'


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AGENTD_PORT", "0")
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "own.toml"))
    (tmp_path / "own.toml").write_text(CONFIG)
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


def agentctl(*arguments: str) -> Result:
    return run(["--format", "json", *arguments], Path.cwd(), os.environ)


def output_of(done: Result) -> Any:
    assert done.code == 0, done.out + done.err
    return done.json


def opened(*options: str) -> None:
    """Start a daemon with the database of this directory, and stop it."""
    started = output_of(agentctl("daemon", "start", *(("--", *options) if options else ())))
    output_of(agentctl("--url", started["url"], "daemon", "stop"))


def state() -> UserState:
    found = user_state()
    assert found is not None
    return found


def contents() -> dict[str, bytes]:
    return {
        one.name: one.read_bytes() for one in DATABASE.parent.iterdir() if "log" not in one.name
    }


async def made(path: Path, **options: Any) -> str:
    async with SqliteStore(path, **options) as store:
        return store.database


def errors_of(done: Result) -> list[str]:
    findings = done.json["findings"]
    return [one["message"] for one in findings if one["level"] == "error"]


def test_database_that_came_with_a_repository_is_not_opened(repository: Path) -> None:
    name = anyio.run(made, DATABASE)
    before = contents()
    refused = agentctl("daemon", "start")
    assert refused.code == 1
    assert "--db .data/agent-orchestrator.db" in refused.err
    assert "Traceback" not in (DATABASE.parent / "agentd.log").read_text()
    assert any("no record that you made or used" in one for one in errors_of(agentctl("doctor")))
    assert contents() == before
    # Naming the database once makes it known.
    opened("--db", str(DATABASE))
    assert is_known(state(), [name])
    assert not any("not made or used" in one for one in errors_of(agentctl("doctor")))
    opened()


@pytest.mark.anyio
async def test_refused_database_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "data" / "x.db"
    asked: list[tuple[str, ...]] = []

    def refuse(names: tuple[str, ...]) -> bool:
        asked.append(names)
        return False

    name = await made(path, may_use=refuse)
    assert not asked  # it was made
    with path.with_name("x.db-journal").open("wb") as journal:
        journal.write(b"a journal somebody left")
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    with pytest.raises(UnknownDatabase, match=r"x\.db"):
        await made(path, may_use=refuse)
    assert asked == [(name,)]
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ForeignDatabase):
        await made(path, may_use=refuse)


@pytest.mark.anyio
async def test_backup_keeps_the_identity_of_its_database(tmp_path: Path) -> None:
    path, saved = tmp_path / "x.db", tmp_path / "saved.db"
    async with SqliteStore(path) as store:
        await store.back_up(saved, replace=False)
        name = store.database
    assert name == await made(path, may_use=lambda names: name in names)
    again = await made(saved, may_use=lambda names: name in names)
    assert again != name


@pytest.mark.parametrize("name", ["", "x", "../tokens/8765", "0" * 33, "0" * 32 + "\n", "a" * 5000])
def test_malformed_database_name_is_unknown(tmp_path: Path, name: str) -> None:
    state = UserState(tmp_path / "state")
    remember(state, "0" * 32, tmp_path)
    (state.root / "tokens").mkdir()
    (state.root / "tokens/8765.json").touch(mode=0o600)
    assert is_known(state, ["0" * 32])
    assert not is_known(state, [name])
    assert not is_known(None, ["0" * 32])


def test_log_is_not_written_through_a_symbolic_link(repository: Path, tmp_path: Path) -> None:
    make_data_directory(DATABASE.parent)
    target = tmp_path / "profile"
    target.write_text("mine\n")
    target.chmod(0o644)
    log = DATABASE.parent / "agentd.log"
    log.symlink_to(target)
    refused = agentctl("daemon", "start")
    assert refused.code == 1
    assert "Traceback" not in refused.err
    assert "agentd.log" in refused.err
    assert target.read_text() == "mine\n"
    assert os.stat(target).st_mode & 0o777 == 0o644  # noqa: PTH116
