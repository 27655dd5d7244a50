"""What is alive of agents when those who look after them are killed; with real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pace import allowed

from agent_orchestrator.hosts.linux.orphans import kill_orphans
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.testing.runners import tagged_processes

HERE = Path(__file__).parent
AGENT = [sys.executable, "-S", str(HERE.parent / "runners" / "agents.py")]

SCENES = ["forks", "escaped", "escaped-dead", "mute", "stubborn", "stopped", "clean-child"]

TIME_TO_DIE = 2.0


class Holding:
    """A process that holds agents."""

    def __init__(self, process, marks):
        self.process = psutil.Process(process.pid)
        self.marks = marks
        [self.fork_server] = [
            one for one in self.process.children() if "forkserver.py" in " ".join(one.cmdline())
        ]
        self.supervisors = self.fork_server.children()
        self.all = [*self.fork_server.children(recursive=True), self.fork_server]
        self.agents = [one for one in self.all if one not in (*self.supervisors, self.fork_server)]

    def survivors(self, processes=None):
        """Return those of the processes that are alive after as long as they may take to die."""
        end = time.monotonic() + TIME_TO_DIE
        alive = processes or self.all
        while (alive := [one for one in alive if is_alive(one)]) and time.monotonic() < end:
            time.sleep(0.01)
        return alive, [pid for tag in self.marks for pid in tagged_processes(tag)]


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def holding(*agents, backend="asyncio", env=None):
    """Run a holder of these agents; whatever is left of them afterwards is killed."""
    marks = [uuid.uuid4().hex for _ in agents]
    for agent, tag in zip(agents, marks, strict=True):
        agent.setdefault("env", dict(os.environ))[TAG_VARIABLE] = tag
    known = None
    holder = subprocess.Popen(
        [sys.executable, str(HERE / "holder.py"), backend],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        holder.stdin.write(json.dumps(agents).encode())
        holder.stdin.close()
        assert holder.stdout.readline(), "the holder ended"
        known = Holding(holder, marks)
        yield known
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        for left in known.all if known else ():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends by itself meanwhile
                left.kill()


def scene(name, tmp_path):
    return {"argv": [*AGENT, name], "cwd": str(tmp_path), "stdin": "", "until": "ready"}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_outlives_who_embeds_the_library(tmp_path, backend):
    with holding(*(scene(name, tmp_path) for name in SCENES), backend=backend) as held:
        assert len(held.supervisors) == len(SCENES)
        assert len(held.agents) > 55
        held.process.kill()
        assert held.survivors() == ([], [])


def test_a_storm_of_forks_is_over_too(tmp_path):
    with holding(scene("storm", tmp_path), scene("storm", tmp_path)) as held:
        assert len(held.agents) > 400
        held.process.kill()
        assert held.survivors() == ([], [])


def test_a_child_of_the_owner_that_holds_its_sockets_changes_nothing(tmp_path):
    with holding(scene("escaped", tmp_path), env={"FORKED": "1"}) as held:
        [child] = [one for one in held.process.children() if one != held.fork_server]
        try:
            held.process.kill()
            assert held.survivors() == ([], [])
            assert is_alive(child)
        finally:
            child.kill()


def test_what_stops_the_whole_group_leaves_nothing(tmp_path):
    with holding(scene("stubborn", tmp_path), scene("escaped", tmp_path)) as held:
        for process in (*held.supervisors, held.fork_server):
            process.terminate()
            process.send_signal(signal.SIGINT)
        held.process.terminate()
        assert held.survivors() == ([], [])


def test_a_killed_supervisor_leaves_nothing(tmp_path):
    with holding(scene("escaped", tmp_path), scene("escaped", tmp_path)) as held:
        killed, other = held.supervisors
        of_killed, of_other = killed.children(recursive=True), other.children(recursive=True)
        killed.kill()
        assert held.survivors(of_killed)[0] == []
        assert all(is_alive(one) for one in (other, *of_other))


def test_supervisors_outlive_the_fork_server_and_do_their_work(tmp_path):
    with holding(*(scene(name, tmp_path) for name in SCENES)) as held:
        held.fork_server.kill()
        time.sleep(0.2)  # in which they would die of it
        assert all(is_alive(one) for one in (*held.supervisors, *held.agents))
        held.process.kill()
        assert held.survivors() == ([], [])


@pytest.mark.parametrize("what", ["stopped", "killed"])
@pytest.mark.anyio
async def test_the_orphan_scan_finds_what_nobody_was_left_to_end(tmp_path, what):
    with holding(*(scene(name, tmp_path) for name in SCENES)) as held:
        for process in (held.fork_server, *held.supervisors):
            process.suspend()
        held.process.kill()
        if what == "killed":
            for process in (held.fork_server, *held.supervisors):
                process.kill()
        assert all(is_alive(one) for one in held.agents)
        began = time.monotonic()
        for tag in held.marks:
            assert (await kill_orphans(tag)).alive == ()
        assert time.monotonic() - began < allowed(TIME_TO_DIE)
        assert [one for one in held.agents if is_alive(one)] == []
        if what == "stopped":
            assert [one for one in held.supervisors if is_alive(one)] == []
