"""Agents end when the processes above them are killed. With real processes."""

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

from agent_orchestrator.hosts.linux.orphans import kill_orphans
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.testing.runners import tagged_processes

HERE = Path(__file__).parent
AGENT = [sys.executable, "-S", str(HERE.parent / "runners" / "agents.py")]

SCENES = ["forks", "escaped", "escaped-dead", "mute", "stubborn", "stopped", "clean-child"]

KILL_TIME_S = 60.0


class Holding:
    """A process that holds agents."""

    def __init__(self, process, tags):
        self.process = psutil.Process(process.pid)
        self.tags = tags
        [self.fork_server] = [
            one for one in self.process.children() if "forkserver.py" in " ".join(one.cmdline())
        ]
        self.supervisors = self.fork_server.children()
        self.all = [*self.fork_server.children(recursive=True), self.fork_server]
        self.agents = [one for one in self.all if one not in (*self.supervisors, self.fork_server)]

    def survivors(self, processes=None):
        """Return the processes that are still alive after the time they have to end."""
        end = time.monotonic() + KILL_TIME_S
        alive = processes or self.all
        while (alive := [one for one in alive if is_alive(one)]) and time.monotonic() < end:
            time.sleep(0.01)
        return alive, [pid for tag in self.tags for pid in tagged_processes(tag)]


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def holding(*agents, backend="asyncio", env=None):
    """Run a holder of these agents; kill all that is left of them afterwards."""
    tags = [uuid.uuid4().hex for _ in agents]
    for agent, tag in zip(agents, tags, strict=True):
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
        known = Holding(holder, tags)
        yield known
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        for left in known.all if known else ():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
                left.kill()


def scene(name, tmp_path):
    return {
        "argv": [*AGENT, name],
        "cwd": str(tmp_path),
        "stdin": "",
        "until": "ready",
        "ends": name == "escaped-dead",
    }


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_agents_end_when_the_embedding_process_is_killed(tmp_path, backend):
    with holding(*(scene(name, tmp_path) for name in SCENES), backend=backend) as held:
        assert len(held.supervisors) == len(SCENES)
        assert len(held.agents) > 55
        held.process.kill()
        assert held.survivors() == ([], [])


def test_fork_storm_ends_when_the_embedding_process_is_killed(tmp_path):
    with holding(scene("storm", tmp_path), scene("storm", tmp_path)) as held:
        assert len(held.agents) > 400
        held.process.kill()
        assert held.survivors() == ([], [])


def test_agents_end_though_a_forked_child_holds_the_sockets(tmp_path):
    with holding(scene("escaped", tmp_path), env={"FORKED": "1"}) as held:
        [child] = [one for one in held.process.children() if one != held.fork_server]
        try:
            held.process.kill()
            assert held.survivors() == ([], [])
            assert is_alive(child)
        finally:
            child.kill()


def test_agents_end_when_the_whole_process_group_is_terminated(tmp_path):
    with holding(scene("stubborn", tmp_path), scene("escaped", tmp_path)) as held:
        for process in (*held.supervisors, held.fork_server):
            process.terminate()
            process.send_signal(signal.SIGINT)
        held.process.terminate()
        assert held.survivors() == ([], [])


def test_agent_of_a_killed_supervisor_ends_and_others_go_on(tmp_path):
    with holding(scene("escaped", tmp_path), scene("escaped", tmp_path)) as held:
        killed, other = held.supervisors
        of_killed, of_other = killed.children(recursive=True), other.children(recursive=True)
        killed.kill()
        assert held.survivors(of_killed)[0] == []
        assert all(is_alive(one) for one in (other, *of_other))


def test_supervisors_survive_the_fork_server_and_still_end_their_agents(tmp_path):
    with holding(*(scene(name, tmp_path) for name in SCENES)) as held:
        held.fork_server.kill()
        time.sleep(0.2)  # time in which they would end with it
        assert all(is_alive(one) for one in (*held.supervisors, *held.agents))
        held.process.kill()
        assert held.survivors() == ([], [])


@pytest.mark.parametrize("what", ["stopped", "killed"])
@pytest.mark.anyio
async def test_orphan_scan_kills_agents_whose_supervisors_are_stopped_or_killed(tmp_path, what):
    with holding(*(scene(name, tmp_path) for name in SCENES)) as held:
        for process in (held.fork_server, *held.supervisors):
            process.suspend()
        held.process.kill()
        if what == "killed":
            for process in (held.fork_server, *held.supervisors):
                process.kill()
        assert all(is_alive(one) for one in held.agents)
        for tag in held.tags:
            assert (await kill_orphans(tag)).alive == ()
        assert [one for one in held.agents if is_alive(one)] == []
        if what == "stopped":
            assert [one for one in held.supervisors if is_alive(one)] == []
