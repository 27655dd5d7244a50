import os
import resource
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable

import anyio
import psutil
import pytest
from attrs import evolve
from pids import is_gone

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import ReapResult
from agent_orchestrator.hosts.linux import orphans
from agent_orchestrator.hosts.linux.orphans import (
    kill_by_variable,
    kill_orphans,
    tag_limit,
    tags_with_processes,
)
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.processes import process_start_id, read_proc
from agent_orchestrator.testing.stores.samples import NOW

pytestmark = pytest.mark.anyio

RLIMIT_LOCKS = 10

ORPHAN = """
import subprocess, sys
null = subprocess.DEVNULL
child = subprocess.Popen(["sleep", "300"], start_new_session=True, stdout=null, **eval(sys.argv[1]))
print(child.pid, flush=True)
"""
"""Leave a process behind in a new session, without a parent."""


@pytest.fixture
def tag():
    return f"{uuid.uuid4().hex}.1"


@pytest.fixture
def orphan(tag):
    """Start an orphan that has the tag limit, the tag, or neither; return its pid."""
    left = []

    def start(*, limited=False, tagged=False, clean=False, **options):
        def set_tag_limit():
            _, most = resource.getrlimit(RLIMIT_LOCKS)
            resource.setrlimit(RLIMIT_LOCKS, (tag_limit(tag), most))

        env = {**os.environ, **({TAG_VARIABLE: tag} if tagged else {})}
        child = {"env": {}, "executable": "/bin/sleep"} if clean else {}
        started = subprocess.run(
            [sys.executable, "-c", ORPHAN, repr(child)],
            env=env,
            stdout=subprocess.PIPE,
            check=True,
            preexec_fn=set_tag_limit if limited else None,
            **options,
        )
        left.append(psutil.Process(int(started.stdout)))
        return left[-1].pid

    yield start
    for process in left:
        if process.is_running():
            process.kill()


async def test_scan_without_orphans_finds_nothing(tag):
    assert await kill_orphans(tag) == ReapResult()
    assert await kill_orphans(tag, os.getpid(), "another-boot/1") == ReapResult()
    assert await kill_orphans(None, None, None) == ReapResult()


@pytest.mark.parametrize(
    "bears", [{"limited": True, "clean": True}, {"tagged": True}, {"limited": True, "tagged": True}]
)
async def test_orphan_is_found_by_the_tag_that_it_inherited(tag, orphan, bears):
    pid = orphan(**bears)
    stranger = orphan()
    with anyio.fail_after(45):
        assert await kill_orphans(tag) == ReapResult("gone", (pid,))
    assert is_gone(pid)
    assert psutil.pid_exists(stranger)


@pytest.mark.parametrize("bears", [{"limited": True, "clean": True}, {"tagged": True}, {}])
async def test_one_look_finds_all_attempts_that_have_processes(tag, orphan, bears):
    pid = orphan(**bears)
    own = Attempt(tag.removesuffix(".1"), 1, "dmn_1/1", "codex", NOW)
    if not bears:
        own = evolve(own, pid=pid, process_start_id=process_start_id(pid))
    others = [
        evolve(own, run_id="run_1", pid=pid, process_start_id="another-boot/1"),
        evolve(own, run_id="run_2", pid=pid, process_start_id=None),
        evolve(own, run_id=f"{own.run_id}0", pid=None),
    ]
    assert await tags_with_processes([*others, own]) == {tag}


async def test_one_look_finds_all_attempts_of_a_process_that_serves_several(tag, orphan):
    pid = orphan()
    one = Attempt(tag, 1, "dmn_1/1", "codex", NOW, pid=pid, process_start_id=process_start_id(pid))
    both = [one, evolve(one, run_id=f"{tag}0")]
    assert await tags_with_processes(both) == {attempt.tag for attempt in both}


async def test_stopped_orphan_is_killed(tag, orphan):
    pid = orphan(limited=True)
    os.kill(pid, signal.SIGSTOP)
    with anyio.fail_after(45):
        assert (await kill_orphans(tag)).ended == (pid,)


async def test_recorded_process_is_killed_if_its_start_id_matches(tag, orphan):
    pid = orphan()
    start_id = process_start_id(pid)
    for stranger in (None, f"{start_id}0", f"another-boot/{start_id.partition('/')[2]}"):
        assert await kill_orphans(tag, pid, stranger) == ReapResult()
    with anyio.fail_after(45):
        assert await kill_orphans(tag, pid, start_id) == ReapResult("gone", (pid,))


async def test_orphan_whose_environment_is_empty_during_execve_is_killed(
    tag: str, orphan: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = orphan(tagged=True)
    # Linux shows the environment of a process as empty until execve has set up the new program.
    path = f"/proc/{pid}/environ"
    shown = iter([b"", b""])
    monkeypatch.setattr(
        orphans,
        "read_proc",
        lambda asked: next(shown, read_proc(asked)) if asked == path else read_proc(asked),
    )
    with anyio.fail_after(45):
        assert await kill_by_variable(TAG_VARIABLE, {"another", tag}) == (pid,)
        assert await kill_by_variable(TAG_VARIABLE, {tag}) == ()


def test_tag_limit_is_in_range_and_differs_for_each_tag(tag):
    assert 2**61 <= tag_limit(tag) < 2**62
    assert tag_limit(tag) == tag_limit(tag)
    assert tag_limit(tag) != tag_limit(tag + "0")
