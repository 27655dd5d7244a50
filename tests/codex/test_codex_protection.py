"""What a codex that may write in its workspace cannot do to the daemon that runs it there."""

from pathlib import Path

import anyio
import pytest
from gateway import THROUGH_A_GATEWAY, Gateways, turn
from model_server import ModelServer, write_codex_home

from agent_orchestrator import Client, Run, RunStatus
from agent_orchestrator.trusted_files import FoundFile, trust
from agent_orchestrator.user_state import user_state
from agentd.settings import UntrustedConfig, load

pytestmark = THROUGH_A_GATEWAY

RUNNERS = pytest.mark.parametrize("runner", ["codex-exec", "codex-app-server"])

DB = ".data/agent-orchestrator.db"


def _attempts(where: str) -> str:
    """A script that tries to change each of the daemon's files below a directory."""
    files = [f"{DB}", f"{DB}-wal", f"{DB}-shm", f"{DB}.lock", f"{DB}.commits", f"{DB}.ballast"]
    files += [f"{DB}-journal", ".data/new", ".data/.gitignore", "agentd.toml"]
    # Not by `rm -rf`, for which codex asks first.
    tries = [f"echo x >> {where}/{name} && say CHANGED" for name in files]
    tries += [
        f"mv {where}/.data {where}/gone && say MOVED",
        f"find {where}/.data -delete && say GONE",
    ]
    tries += [f"ln -s {where}/.data here; echo x >> here/new && say CHANGED"]
    tries += [f"cat {where}/{DB} > /dev/null && say READ", 'cat "$STATE"/tokens/t && say READ']
    tries += [f"mv {where} other && say MOVED"] if where != "." else []
    tries += [f"echo x > {where}/allowed && say ALLOWED"]
    # What a command prints is told beside the command: the command itself must not say it.
    shell = "say() { printf '%s-%s ' $1 yes; }; " + "; ".join(f"({one})" for one in tries)
    return f"shell {shell}\nadd {where}/agentd.toml [daemon]\nadd {where}/.data/more x\nsay done"


def _content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.suffix != ".db" else b""
        for path in (directory / ".data").rglob("*")
        if path.is_file() and path.name.removesuffix("-wal").removesuffix("-shm") == path.name
    }


async def _tries(client: Client, cwd: Path, script: str, **how: str) -> str:
    """Return what the commands of a turn printed."""
    session = await client.create_session(cwd=str(cwd), **how)  # type: ignore[arg-type]
    run: Run = await turn(client, session.id, script)
    assert run.status is RunStatus.COMPLETED, run.error
    return "".join(
        [
            str(event.data)
            async for event in client.events(session.id)
            if event.event_type.startswith("tool.") and event.event_type != "tool.started"
        ]
    )


@pytest.fixture
def home(outside: Path, models: ModelServer) -> Path:
    """A codex home that no test works above: an agent that could write its own is refused."""
    return write_codex_home(outside / "codex", models.port)


@RUNNERS
async def test_an_agent_cannot_read_or_change_the_daemons_files_in_the_default_layout(
    gateways: Gateways, runner: str, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = outside / "agent-orchestrator"
    (state / "tokens").mkdir(parents=True)
    (state / "tokens" / "t").write_text("what is secret")
    monkeypatch.setenv("XDG_STATE_HOME", str(outside))
    gateway = gateways(
        "--db", DB, runner=runner, sandbox="workspace-write", settings='approvals = "deny"',
        STATE=str(state),
    )  # fmt: skip
    repository = tmp_path / "gateway-0"
    config = (repository / "agentd.toml").read_text()
    before = _content(repository)
    async with gateway.client() as client:
        said = await _tries(client, repository, _attempts("."))
        above = await _tries(client, tmp_path, _attempts("gateway-0"))
        read_only = await _tries(client, repository, _attempts("."), sandbox="read-only")
    assert "ALLOWED-yes" in said
    assert "ALLOWED-yes" in above
    for word in ("CHANGED-yes", "MOVED-yes", "GONE-yes", "READ-yes", "what is secret"):
        assert word not in said + above
    # A command in a read-only sandbox below /dev changes a copy in memory, so what it says proves nothing.
    for word in ("READ-yes", "what is secret"):
        assert word not in read_only
    assert (repository / "agentd.toml").read_text() == config
    assert repository.is_dir()
    after = _content(repository)
    assert {name for name in after if name not in before} <= {f"{DB}-stopped"}
    assert all(after[name] == before[name] for name in (".data/.gitignore",))


@pytest.mark.parametrize("db", [DB, "data.db"], ids=["default", "here"])
@RUNNERS
async def test_concurrent_commands_work_while_protected_files_change(
    gateways: Gateways, runner: str, db: str, tmp_path: Path
) -> None:
    # The configuration is missing. The files of the database are written meanwhile.
    gateway = gateways("--db", db, runner=runner, sandbox="workspace-write", config="other.toml")
    repository = tmp_path / "gateway-0"
    # What a command prints is told beside the command: the command itself must not say it.
    one = "shell sleep 0.0$((RANDOM % 9)); printf '%s-%s ' went well"
    script = f"{one}\n" + f"& {one}\n" * 9 + "say done"
    said: list[str] = []
    async with gateway.client() as client:

        async def go() -> None:
            said.append(await _tries(client, repository, script))

        async with anyio.create_task_group() as at_once:
            for _ in range(3):
                at_once.start_soon(go)
    assert sorted(path.name for path in repository.glob("*.toml")) == ["other.toml"]
    # On a busy machine codex may leave a command before its end: none of the others failed.
    for text in said:
        assert "'status': 'failed'" not in text
        assert "bwrap:" not in text
        assert text.count("'exit_code': 0") > 1


async def test_a_configuration_file_that_an_agent_creates_is_not_used(
    gateways: Gateways, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "gateway-0"
    repository_config = repository / "agentd.toml"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    state = user_state()
    assert state is not None
    # The user trusted it once, and has removed it since.
    content = b"[daemon]\nport = 1\n"
    trust(state, FoundFile(repository_config, content))
    gateway = gateways(sandbox="workspace-write", config="other.toml")
    async with gateway.client() as client:
        made = r"shell printf '[daemon]\nport = 1\n' > agentd.toml"
        await _tries(client, repository, f"{made}\nsay done")
        assert repository_config.read_bytes() == content
        await _tries(client, repository, "shell echo x >> agentd.toml || true\nsay done")
        assert repository_config.read_bytes() == content  # now that it is there, it is kept
    monkeypatch.chdir(repository)
    with pytest.raises(UntrustedConfig):
        load({}, {})


async def test_an_agent_cannot_create_a_configuration_file_that_was_removed(
    gateways: Gateways, tmp_path: Path
) -> None:
    gateway = gateways(sandbox="workspace-write")
    repository = tmp_path / "gateway-0"
    (repository / "agentd.toml").unlink()
    async with gateway.client() as client:
        said = await _tries(
            client, repository, "shell echo x > agentd.toml || echo REFUSED\nsay done"
        )
    assert "REFUSED" in said
    left = repository / "agentd.toml"
    assert not left.exists() or left.read_text() == ""  # codex may leave what it has mounted there


@RUNNERS
async def test_a_moved_session_works_in_its_new_directory_only(
    gateways: Gateways, runner: str, outside: Path
) -> None:
    gateway = gateways(runner=runner, sandbox="workspace-write")
    places = [outside / name for name in ("old", "new")]
    for place in places:
        place.mkdir()
    late = f"echo x > {places[0]}/late"
    script = f"shell pwd; echo x > here; {late}\nsay done"
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(places[0]))
        await turn(client, session.id, "say first")
        await client.update_session(session.id, cwd=str(places[1]))
        run = await turn(client, session.id, script)
        log = "".join([str(event.data) async for event in client.events(session.id)])
    assert run.status is RunStatus.COMPLETED, run.error
    assert (places[1] / "here").exists()
    assert not (places[0] / "late").exists()
    assert str(places[1]) in log
