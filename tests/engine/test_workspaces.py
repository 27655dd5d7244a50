"""The directories that sessions may work in."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from agent_orchestrator import Client, RunStatus, open_embedded
from agent_orchestrator.domain.access import LOCAL, Principal
from agent_orchestrator.domain.errors import (
    ConfigError,
    Forbidden,
    InvalidRequest,
    NotFound,
    SessionBusy,
)
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.engine import (
    EngineConfig,
    Orchestrator,
    ProviderConfig,
    Routing,
    sessions,
)
from agent_orchestrator.hosts import this_host
from agent_orchestrator.operations.sessions import UpdateSession
from agent_orchestrator.runners.command import CommandRunner
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.scripted import ScriptedRunner

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace root reached by a symbolic link, with directories in it and links out of it."""
    for name in ("root/a/below", "root/ab", "rooted", "outside"):
        (tmp_path / "real" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real/root/out").symlink_to(tmp_path / "real/outside")
    (tmp_path / "real/root/in").symlink_to("a")
    return tmp_path / "link/root"


@pytest.fixture
async def client(root: Path) -> AsyncIterator[Client]:
    settings = {"workspace_roots": [str(root)], "cwd": str(root)}
    async with open_embedded(":memory:", runners=[ScriptedRunner()], **settings) as client:
        yield client


async def test_session_directory_must_be_below_a_workspace_root(client: Client, root: Path) -> None:
    real = root.parents[1] / "real/root"
    assert (await client.create_session()).cwd == str(real)
    for asked, found in (("a", "a"), ("in/below", "a/below"), ("a/../ab", "ab"), (".", "")):
        assert (await client.create_session(cwd=f"{root}/{asked}")).cwd == str(real / found)
    outside = ("out", "..", "../rooted", "out/../../root/a/../../outside", "../missing")
    for cwd in [f"{root}/{one}" for one in outside] + ["/", "/etc"]:
        with pytest.raises(InvalidRequest) as refusal:
            await client.create_session(cwd=cwd)
        assert "workspace_roots" in refusal.value.details["fields"]["cwd"]
    (root / "loop").symlink_to("loop")
    with pytest.raises(InvalidRequest) as refusal:
        await client.create_session(cwd=f"{root}/loop/x")
    assert "cwd" in refusal.value.details["fields"]
    with pytest.raises(InvalidRequest) as refusal:
        await client.create_session(cwd=f"{root}/missing")
    assert "is not a directory" in refusal.value.details["fields"]["cwd"]


async def test_directory_name_that_is_too_long_is_refused(client: Client, root: Path) -> None:
    cwd = f"{root}/{'x' * 300}"  # longer than a file name can be
    async with open_embedded(":memory:", runners=[ScriptedRunner()], cwd=str(root)) as unconfined:
        for one in (client, unconfined):
            with pytest.raises(InvalidRequest) as refusal:
                await one.create_session(cwd=cwd)
            assert "cwd" in refusal.value.details["fields"]


async def test_a_removed_working_directory_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(
        ConfigError, match="cwd: the current directory cannot be used: No such file"
    ):
        async with open_embedded(":memory:", runners=[ScriptedRunner()]):
            pass


async def test_a_run_in_a_directory_that_does_not_answer_can_be_canceled(tmp_path: Path) -> None:
    asked, waits, may_answer = threading.Event(), threading.Event(), threading.Event()

    class Hanging(type(this_host())):  # type: ignore[misc]
        """A machine with a directory that answers a second time only when it may."""

        def is_directory(self, path: str) -> bool:
            if asked.is_set():
                waits.set()
                may_answer.wait(60)
            asked.set()
            return True

    async with open_embedded(":memory:", runners=[ScriptedRunner()], host=Hanging()) as client:
        session = await client.create_session(cwd=str(tmp_path))
        run = (await client.send_message(session.id, "say x")).run
        assert run is not None
        try:
            with anyio.fail_after(45):
                while not waits.is_set():
                    await anyio.sleep(0.01)
                await client.cancel_run(run.id)
                assert (await client.wait_run(run.id)).run.status is RunStatus.CANCELED
        finally:
            may_answer.set()


async def test_directory_of_a_child_must_be_below_its_parents(client: Client, root: Path) -> None:
    parent = await client.create_session(cwd=f"{root}/a")
    run = (await client.send_message(parent.id, "say x")).run
    assert run is not None
    for above in ({"session_id": parent.id}, {"run_id": run.id}):
        made = await client.spawn("say x", cwd=f"{root}/in/below", **above)
        assert made.session.cwd == str(root.parents[1] / "real/root/a/below")
        assert (await client.spawn("say x", **above)).session.cwd == parent.cwd
        for cwd in (root, root / "ab", root / "a/.."):
            with pytest.raises(Forbidden):
                await client.spawn("say x", cwd=str(cwd), **above)
        with pytest.raises(InvalidRequest):
            await client.spawn("say x", cwd=f"{root}/out", **above)


async def test_spawn_does_not_reveal_which_directories_or_providers_exist(tmp_path: Path) -> None:
    """Neither a stranger nor an agent learns which directories or providers exist."""
    (tmp_path / "home").mkdir()
    provider = ProviderConfig(ScriptedRunner(), "scripted")
    config = EngineConfig({"scripted": provider}, Routing(MANUAL), host=this_host())
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session = await client.create_session(cwd=str(tmp_path / "home"))
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        agent = Client(engine.acting_as(Principal.of_run(run.id, 1, session.id)))
        stranger = Client(engine.acting_as(Principal("stranger")))
        there, missing = str(tmp_path), str(tmp_path / "missing")
        for cwd in (there, missing):
            for above in ({"session_id": session.id}, {"run_id": run.id}):
                with pytest.raises(NotFound):
                    await stranger.spawn("say x", cwd=cwd, **above)
            with pytest.raises(Forbidden, match="in its parent"):
                await agent.spawn("say x", run_id=run.id, cwd=cwd)
        for above in ({"session_id": session.id}, {"run_id": run.id}):
            with pytest.raises(NotFound):
                await stranger.spawn("say x", provider="none", **above)
            with pytest.raises(InvalidRequest, match="cwd"):
                await client.spawn("say x", cwd=missing, **above)
            with pytest.raises(InvalidRequest, match="provider"):
                await client.spawn("say x", provider="none", **above)
        with pytest.raises(InvalidRequest, match="cwd"):
            await agent.spawn("say x", run_id=run.id, cwd=str(tmp_path / "home/missing"))
        below = tmp_path / "home/below"
        below.mkdir()
        assert (await agent.spawn("x", run_id=run.id, cwd=str(below))).session.cwd == str(below)


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("is_confined", [False, True])
async def test_run_fails_with_cwd_missing_if_its_directory_is_gone(
    tmp_path: Path, is_replaced: bool, is_confined: bool
) -> None:
    """For every runner: none is started in a directory that is gone."""
    runner = ScriptedRunner()
    place = tmp_path / "place"
    place.mkdir()
    roots = [str(tmp_path)] if is_confined else []
    async with open_embedded(":memory:", runners=[runner], workspace_roots=roots) as client:
        session = await client.create_session(cwd=str(place))
        first = await client.send_message(session.id, "say one")
        assert first.run is not None
        with anyio.fail_after(45):
            assert (await client.wait_run(first.run.id)).run.status == "completed"
        place.rmdir()
        if is_replaced:
            place.write_text("a file")
        second = await client.send_message(session.id, "say two")
        assert second.run is not None
        with anyio.fail_after(45):
            run = (await client.wait_run(second.run.id)).run
        issue = (await client.diagnose_run(run.id)).diagnostics.likely_issue
        assert (run.status, run.error and run.error.code) == ("failed", "invalid_config")
        assert issue.code == "cwd_missing"
        assert f"agentctl session move {session.id} DIR" in issue.hint
        assert str(place) in issue.message
        place.unlink(missing_ok=True)
        place.mkdir()
        third = await client.send_message(session.id, "say three")
        assert third.run is not None
        with anyio.fail_after(45):
            assert (await client.wait_run(third.run.id)).run.status == "completed"


async def test_run_fails_if_its_directory_now_leads_outside_the_roots(
    client: Client, root: Path
) -> None:
    session = await client.create_session(cwd=f"{root}/a/below")
    (root / "a").rename(root / "gone")
    (root / "a").symlink_to("../outside")
    (root / "a/below").mkdir()
    run = (await client.send_message(session.id, "say x")).run
    assert run is not None
    with anyio.fail_after(45):
        ended = (await client.wait_run(run.id)).run
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "invalid_config")
    assert "workspace_roots" in ended.error.message


SWAP = """
import ctypes, sys
places = [-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2]  # AT_FDCWD, RENAME_EXCHANGE
libc = ctypes.CDLL(None, use_errno=True)
for number in range(10 ** 9):
    if libc.renameat2(*places) != 0:
        sys.exit(ctypes.get_errno())
    if number == 0:
        print(flush=True)
"""
"""Swaps two paths atomically, again and again."""


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    argv = [sys.executable, "-S", "-c", SWAP, str(one), str(other)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == b"\n"
            yield
            assert swapper.poll() is None
        finally:
            swapper.kill()


async def test_run_never_follows_a_link_swapped_in_for_its_directory(root: Path) -> None:
    real = root.parents[1] / "real"
    place, link = real / "root/a", real / "root/out"
    settings = {"workspace_roots": [str(root)], "max_concurrency": 4}
    runner = CommandRunner("where", ["pwd", "-P"], output="text")
    async with open_embedded(":memory:", runners=[runner], **settings) as client:
        sessions = [(await client.create_session(cwd=str(place))).id for _ in range(8)]
        with swapping(place, link), anyio.fail_after(60):
            sent = [await client.send_message(one, "x") for one in sessions * 8]
            ended = [(await client.wait_run(one.run.id)).run for one in sent if one.run]
        assert len(ended) == 64
        for run in ended:
            if run.result is not None:  # by the name its directory had at that moment
                assert run.result.text.strip() in (str(place), str(link))
            else:
                assert run.error is not None
                assert (run.status, run.error.code) == ("failed", "invalid_config")
                assert str(place) in run.error.message
        if place.is_symlink():
            place.unlink()
            link.rename(place)
        last = await client.send_message(sessions[0], "x")
        assert last.run is not None
        with anyio.fail_after(45):
            found = (await client.wait_run(last.run.id)).run.result
        assert found is not None
        assert found.text.strip() == str(place)


async def test_directory_may_be_a_symbolic_link_without_roots(root: Path) -> None:
    runner = CommandRunner("where", ["pwd", "-P"], output="text")
    async with open_embedded(":memory:", runners=[runner]) as client:
        session = await client.create_session(cwd=str(root / "in"))
        run = (await client.send_message(session.id, "x")).run
        assert run is not None
        with anyio.fail_after(45):
            ended = (await client.wait_run(run.id)).run
    assert ended.result is not None
    assert ended.result.text.strip() == str(root.parents[1] / "real/root/a")


def test_missing_workspace_root_is_a_configuration_error(tmp_path: Path) -> None:
    provider = {"x": ProviderConfig(ScriptedRunner(), "scripted")}
    with pytest.raises(ConfigError, match="workspace_roots"):
        EngineConfig(
            provider, Routing("x"), workspace_roots=[str(tmp_path / "missing")], host=this_host()
        )


async def test_moved_session_runs_in_its_new_directory(tmp_path: Path) -> None:
    runner = CommandRunner("where", ["pwd"])
    places = [tempfile.mkdtemp(dir=tmp_path) for _ in range(2)]
    found = []
    async with open_embedded(":memory:", runners=[runner]) as client:
        session = await client.create_session()
        for place in places:
            await client.update_session(session.id, cwd=place)
            sent = await client.send_message(session.id, "where?")
            assert sent.run is not None
            with anyio.fail_after(45):
                found.append((await client.wait_run(sent.run.id)).run.result)
    assert [result and result.text.strip() for result in found] == places


async def test_session_can_be_moved_only_to_an_allowed_directory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for place in (root / "up" / "below", root / "beside", tmp_path / "outside"):
        place.mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "outside")
    async with open_embedded(
        ":memory:", runners=[ScriptedRunner()], workspace_roots=[str(root)]
    ) as client:
        session = await client.create_session(cwd=str(root / "up"))
        child = (await client.spawn("say x", session_id=session.id)).session
        for place in (tmp_path / "outside", root / "link", root / "up" / ".." / ".." / "outside"):
            with pytest.raises(InvalidRequest) as refused:
                await client.update_session(session.id, cwd=str(place))
            assert list(refused.value.details["fields"]) == ["cwd"]
        with pytest.raises(Forbidden):
            await client.update_session(child.id, cwd=str(root / "beside"))
        moved = await client.update_session(child.id, cwd=str(root / "up" / "below"))
        assert moved.cwd == str(root / "up" / "below")
        assert (
            await client.update_session(session.id, cwd=str(root / "beside"))
        ).cwd != session.cwd


async def test_directory_checked_for_a_parent_that_has_moved_is_refused(tmp_path: Path) -> None:
    for place in ("up/below", "beside"):
        (tmp_path / place).mkdir(parents=True)
    config = EngineConfig(
        {"scripted": ProviderConfig(ScriptedRunner(), "scripted")},
        Routing("scripted"),
        host=this_host(),
        workspace_roots=(str(tmp_path),),
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        parent = await client.create_session(cwd=str(tmp_path / "up"))
        spawned = await client.spawn("say x", session_id=parent.id)
        with anyio.fail_after(45):
            await client.wait_run(spawned.run.id)
        child = spawned.session
        command = UpdateSession(session_id=child.id, cwd=str(tmp_path / "up/below"))
        change = await sessions.update(engine.core, LOCAL, command)
        await client.update_session(parent.id, cwd=str(tmp_path / "beside"))
        with pytest.raises(SessionBusy, match=f"parent of session {child.id} has moved"):
            await store.transact(change)
        assert (await client.get_session(child.id)).cwd == child.cwd


@pytest.mark.parametrize("roots", ["/tmp", [5], {"/tmp": 1}])
async def test_workspace_roots_of_a_wrong_type_are_refused(roots: object) -> None:
    with pytest.raises(ConfigError, match="workspace_roots: must be a list of strings"):
        async with open_embedded(":memory:", runners=[ScriptedRunner()], workspace_roots=roots):  # type: ignore[arg-type]
            raise AssertionError("it opened")


async def test_changes_of_a_directory_outside_the_roots_are_not_read(tmp_path: Path) -> None:
    """It got there after it was checked: by an agent, or by a daemon of another host, which cannot check it."""
    work, outside = tmp_path / "root/work", tmp_path / "outside"
    for place in (work, outside):
        place.mkdir(parents=True)
        await anyio.run_process(["git", "init", "-q", str(place)])
    async with open_embedded(
        ":memory:", runners=[ScriptedRunner()], workspace_roots=[str(tmp_path / "root")]
    ) as client:
        session = await client.create_session(cwd=str(work))
        for place in (work, outside):
            (place / "new.txt").write_text("text")
        assert [one.path for one in (await client.get_diff(session.id)).changes] == ["new.txt"]
        work.rename(tmp_path / "root/elsewhere")
        work.symlink_to(outside)
        diff = await client.get_diff(session.id)
        assert (diff.source, diff.changes) == ("events", ())
