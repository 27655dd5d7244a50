"""The contract suite for hosts: subclass :class:`HostContract`.

It starts processes with the running Python interpreter and ends them.
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import Host
from agent_orchestrator.ports import TAG_VARIABLE

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(300)"], stdout=-1)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(300)
"""
_LIMIT_S = 30


@contextmanager
def _process_with_child(attempt: Attempt) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """Start a process with a child, both with the attempt's tag. Yield it and the child's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, TAG_VARIABLE: attempt.tag},
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()
            process.wait()


class HostContract:
    """The contract of hosts. Each test uses a new host."""

    def make_host(self) -> Host:
        """Return a host for this machine."""
        raise NotImplementedError

    def an_attempt(self) -> Attempt:
        """Return an attempt that has not started a process."""
        now = datetime.now(UTC)
        return Attempt(
            f"run_{uuid.uuid4().hex}", 1, "dmn_1/1", "agent", now, host=self.make_host().id
        )

    def test_its_id_outlives_it(self) -> None:
        assert self.make_host().id
        assert self.make_host().id == self.make_host().id

    def test_a_process_is_known_by_its_start(self) -> None:
        host = self.make_host()
        own = host.process_id()
        assert own == os.getpid()
        assert host.process_start_id(own) == host.process_start_id(own) is not None
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        assert host.process_start_id(ended.pid) is None

    def test_directories(self, tmp_path: Path) -> None:
        host = self.make_host()
        (tmp_path / "real/a").mkdir(parents=True)
        (tmp_path / "real/b").mkdir()
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "file").touch()
        link, real = str(tmp_path / "link"), os.path.realpath(tmp_path / "real")
        assert host.is_directory(link)
        for none in ("file", "missing", "loop", "x" * 5000, "nul\0"):
            assert not host.is_directory(f"{tmp_path}/{none}")
        assert host.resolve(f"{link}/a/../missing") == f"{real}/missing"
        assert host.configured_directory(link) == real
        assert host.configured_directory("~") == os.path.realpath(Path.home())
        with pytest.raises((OSError, RuntimeError)):
            host.configured_directory(f"{link}/missing")
        with pytest.raises((OSError, RuntimeError)):
            host.configured_directory(f"{tmp_path}/loop")
        assert host.common_directory([f"{link}/a", f"{real}/b"]) == real
        assert host.common_directory([link]) == real
        assert Path(host.current_directory()) == Path.cwd()

    def test_the_environment_is_a_copy(self) -> None:
        host = self.make_host()
        environment = host.environment()
        environment["AGENT_ORCHESTRATOR_CONTRACT"] = "changed"
        assert host.environment() == dict(os.environ)

    def test_a_process_tree_begins_with_the_process(self) -> None:
        host = self.make_host()
        with _process_with_child(self.an_attempt()) as (process, child):
            start_id = host.process_start_id(process.pid)
            tree = host.process_tree(process.pid, start_id, 10)
            assert [one.pid for one in tree] == [process.pid, child]
            assert tree[1].parent_pid == process.pid
            assert len(host.process_tree(process.pid, start_id, 1)) == 1
            assert not host.process_tree(process.pid, "another", 10)
        assert not host.process_tree(process.pid, start_id, 10)

    async def test_nothing_is_left_of_an_attempt_that_started_nothing(self) -> None:
        attempt = self.an_attempt()
        with anyio.fail_after(_LIMIT_S):
            found = await self.make_host().reap([attempt])
        remains = found[attempt.run_id, 1]
        assert (remains.state, remains.ended, remains.alive) == ("gone", (), ())

    async def test_what_is_left_is_ended(self) -> None:
        host, attempt = self.make_host(), self.an_attempt()
        with _process_with_child(attempt) as (process, child), anyio.fail_after(_LIMIT_S):
            started = evolve(
                attempt, pid=process.pid, process_start_id=host.process_start_id(process.pid)
            )
            remains = (await host.reap([started]))[attempt.run_id, 1]
            assert (remains.state, remains.alive) == ("gone", ())
            assert {process.pid, child} <= {*remains.ended}
            assert process.wait(_LIMIT_S) != 0

    async def test_what_was_never_recorded_is_ended_too(self) -> None:
        attempt = self.an_attempt()
        with _process_with_child(attempt) as (process, _), anyio.fail_after(_LIMIT_S):
            remains = (await self.make_host().reap([attempt]))[attempt.run_id, 1]
            assert remains.state == "gone"
            assert process.wait(_LIMIT_S) != 0

    async def test_a_stranger_with_the_same_process_id_is_left_alone(self) -> None:
        host, attempt, other = self.make_host(), self.an_attempt(), self.an_attempt()
        with _process_with_child(other) as (process, _), anyio.fail_after(_LIMIT_S):
            mistaken = evolve(attempt, pid=process.pid, process_start_id="another")
            remains = (await host.reap([mistaken]))[attempt.run_id, 1]
            assert (remains.state, remains.ended) == ("gone", ())
            assert process.poll() is None
