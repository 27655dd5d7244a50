"""The contract suite for hosts: subclass :class:`HostContract`.

It starts processes with the running Python interpreter and ends them.
"""

import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import psutil
import pytest
from anyio.to_thread import run_sync
from attrs import evolve

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import Host, Process, ProcessSpec, ReapResult
from agent_orchestrator.ports.runner import TAG_VARIABLE

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(300)"], stdout=-1)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(300)
"""
"""Starts a child, prints its pid and sleeps."""

_ESCAPE = """
import os, subprocess, sys
code = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=-1, start_new_session=True, env={"A": "1"})
os.write(1, child.stdout.readline())
"""
"""Leaves a process in another session, with another environment and without its parent."""

_SLEEP = "import time; time.sleep(300)"

_ECHO = """
import sys
data = sys.stdin.read()
print(data.upper(), flush=True)
print("noted", file=sys.stderr, flush=True)
sys.exit(3)
"""

_STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(300)
"""

_LIMIT_S = 60


@contextmanager
def _process_with_child(attempt: Attempt) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """Start a process with a child, both with the attempt's tag. Yield it and the child's pid."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _PARENT],
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
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _spec(code: str, **options: Any) -> ProcessSpec:
    fields = {"cwd": "/", "env": dict(os.environ)} | options
    return ProcessSpec([sys.executable, "-S", "-c", code], **fields)


async def _read_all(process: Process) -> str:
    data = b""
    while chunk := await process.read():
        data += chunk
    return data.decode()


async def _read_line(process: Process) -> str:
    data = b""
    while not data.endswith(b"\n"):
        chunk = await process.read()
        assert chunk, "stdout has ended"
        data += chunk
    return data.decode().strip()


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class HostContract:
    """The contract of hosts. Each test uses a new host."""

    finds_everything: ClassVar[bool] = True
    """Whether the host finds every process of an attempt, even if it hides. Another host must answer
    ``unknown`` while a process may be left."""

    def check_gone(self, result: ReapResult) -> None:
        """Check that a host says that nothing is left, or why it does not know."""
        assert not result.alive
        if self.finds_everything or result.state != "unknown":
            assert result.state == "gone"
        else:
            assert result.reason

    def make_host(self) -> Host:
        """Return a host for this machine."""
        raise NotImplementedError

    def an_attempt(self) -> Attempt:
        """Return an attempt that has not started a process."""
        now = datetime.now(UTC)
        return Attempt(
            f"run_{uuid.uuid4().hex}", 1, "dmn_1/1", "agent", now, host=self.make_host().id
        )

    def test_the_host_id_is_stable(self) -> None:
        assert self.make_host().id
        assert self.make_host().id == self.make_host().id

    def test_a_host_can_have_a_name(self) -> None:
        host = self.make_host().named("builder")
        assert host.id == "builder"
        assert self.make_host().machine_name() == self.make_host().machine_name() != "local"

    def test_the_host_tells_people_its_machine_and_its_user(self) -> None:
        assert self.make_host().hostname()
        assert (self.make_host().user() == "root") == (os.geteuid() == 0)

    def test_a_process_start_id_identifies_a_process(self) -> None:
        host = self.make_host()
        own_pid = host.process_id()
        assert own_pid == os.getpid()
        assert host.process_start_id(own_pid) == host.process_start_id(own_pid) is not None
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        assert host.process_start_id(ended.pid) is None

    async def test_a_directory_outside_of_a_checkout_has_no_known_changes(
        self, tmp_path: Path
    ) -> None:
        began = datetime.now(UTC)
        for place in (tmp_path, tmp_path / "missing"):
            assert await self.make_host().directory_changes(str(place), began) is None

    async def test_the_end_of_another_process_is_awaited(self) -> None:
        host = self.make_host()
        other = subprocess.Popen(  # noqa: ASYNC220 - it starts in no time
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
        )
        try:
            start_id = host.process_start_id(other.pid)
            assert start_id is not None
            with anyio.move_on_after(0.1) as alive:
                await host.process_end(other.pid, start_id)
            assert alive.cancelled_caught
            with anyio.fail_after(_LIMIT_S):
                # The pid belongs to another process than the one that is meant.
                await host.process_end(other.pid, f"{start_id}0")
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(host.process_end, other.pid, start_id)
                    await anyio.lowlevel.checkpoint()
                    other.communicate(b"end\n")
                await host.process_end(other.pid, start_id)
        finally:
            other.kill()
            other.communicate()

    def test_directories_are_checked_and_resolved(self, tmp_path: Path) -> None:
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
            assert [view.pid for view in tree] == [process.pid, child]
            assert tree[1].parent_pid == process.pid
            assert len(host.process_tree(process.pid, start_id, 1)) == 1
            assert not host.process_tree(process.pid, "another", 10)
        assert not host.process_tree(process.pid, start_id, 10)

    async def test_reaping_an_attempt_without_processes_finds_none(self) -> None:
        attempt = self.an_attempt()
        with anyio.fail_after(_LIMIT_S):
            reaped = await self.make_host().reap([attempt])
        result = reaped[attempt.run_id, 1]
        self.check_gone(result)
        assert not result.ended

    async def test_reaping_ends_the_processes_of_an_attempt(self) -> None:
        host, attempt = self.make_host(), self.an_attempt()
        with _process_with_child(attempt) as (process, child), anyio.fail_after(_LIMIT_S):
            started = evolve(
                attempt, pid=process.pid, process_start_id=host.process_start_id(process.pid)
            )
            result = (await host.reap([started]))[attempt.run_id, 1]
            self.check_gone(result)
            assert {process.pid, child} <= {*result.ended}
            assert process.wait(_LIMIT_S) != 0

    async def test_reaping_ends_processes_that_were_never_recorded(self) -> None:
        attempt = self.an_attempt()
        with _process_with_child(attempt) as (process, _), anyio.fail_after(_LIMIT_S):
            result = (await self.make_host().reap([attempt]))[attempt.run_id, 1]
            self.check_gone(result)
            assert process.wait(_LIMIT_S) != 0

    async def test_reaping_spares_another_process_with_the_same_pid(self) -> None:
        host, attempt, other = self.make_host(), self.an_attempt(), self.an_attempt()
        with _process_with_child(other) as (process, _), anyio.fail_after(_LIMIT_S):
            mistaken = evolve(attempt, pid=process.pid, process_start_id="another")
            result = (await host.reap([mistaken]))[attempt.run_id, 1]
            self.check_gone(result)
            assert not result.ended
            assert process.poll() is None

    async def test_reaping_spares_a_process_whose_start_was_not_recorded(self) -> None:
        host, attempt, other = self.make_host(), self.an_attempt(), self.an_attempt()
        with _process_with_child(other) as (process, _), anyio.fail_after(_LIMIT_S):
            unclear = evolve(attempt, pid=process.pid, process_start_id=None)
            result = (await host.reap([unclear]))[attempt.run_id, 1]
            assert result.state == "unknown" or self.finds_everything
            assert not result.ended
            assert process.poll() is None

    async def test_the_state_of_an_attempt_of_another_host_is_unknown(self) -> None:
        attempt = self.an_attempt()
        foreign = evolve(attempt, host=f"not-{attempt.host}")
        with _process_with_child(attempt) as (process, _), anyio.fail_after(_LIMIT_S):
            result = (await self.make_host().reap([foreign]))[attempt.run_id, 1]
            assert result.state == "unknown"
            assert result.reason
            assert process.poll() is None

    async def test_a_hidden_process_is_never_reported_as_gone(self) -> None:
        host, attempt = self.make_host(), self.an_attempt()
        environment = {**os.environ, TAG_VARIABLE: attempt.tag}
        argv = _spec(_ESCAPE).argv
        escaped = int(await run_sync(lambda: subprocess.check_output(argv, env=environment)))
        try:
            with anyio.fail_after(_LIMIT_S):
                result = (await host.reap([attempt]))[attempt.run_id, 1]
            if _is_alive(escaped):
                assert result.state in {"alive", "unknown"} or self.finds_everything
        finally:
            with suppress(ProcessLookupError):
                os.kill(escaped, signal.SIGKILL)

    async def test_processes_are_killed_by_a_variable(self) -> None:
        mine, other = self.an_attempt(), self.an_attempt()
        with (
            _process_with_child(mine) as (process, child),
            _process_with_child(other) as (spared, _),
            anyio.fail_after(_LIMIT_S),
        ):
            ended = await self.make_host().kill_by_variable(TAG_VARIABLE, {mine.tag, "another"})
            assert {*ended} == {process.pid, child}
            assert process.wait(_LIMIT_S) != 0
            assert not await self.make_host().kill_by_variable(TAG_VARIABLE, {mine.tag})
            assert spared.poll() is None

    # --- processes it starts

    async def test_the_whole_output_of_a_process_is_read(self) -> None:
        host, reported = self.make_host(), list[str]()
        spec = _spec(_ECHO, stdin="ä\n".encode() * 100_000, on_stderr=reported.append)
        with anyio.fail_after(_LIMIT_S):
            async with host, host.open_process(spec) as process:
                assert [process.returncode] == [None]
                assert process.start_id == host.process_start_id(process.pid) is not None
                assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
                assert await _read_all(process) == "Ä\n" * 100_000 + "\n"
                assert await process.wait() == 3
        assert process.returncode == 3
        assert process.stderr_tail == reported[-1] == "noted\n"
        assert host.process_start_id(process.pid) is None

    async def test_stdin_can_be_written(self) -> None:
        code = "import sys\nfor line in sys.stdin: print(line[::-1].strip(), flush=True)"
        with anyio.fail_after(_LIMIT_S):
            async with self.make_host().open_process(_spec(code, stdin=None)) as process:
                await process.write(b"abc\n")
                assert await _read_line(process) == "cba"

    async def test_a_process_has_the_given_environment_and_directory(self, tmp_path: Path) -> None:
        (tmp_path / "mine").symlink_to("/usr/bin/env")
        environment = {"PATH": str(tmp_path), "A": "1=2", "EMPTY": "", "Ä": "ö"}
        spec = ProcessSpec(["mine"], cwd="/", env=environment)
        with anyio.fail_after(_LIMIT_S):
            async with self.make_host().open_process(spec) as process:
                lines = (await _read_all(process)).splitlines()
            assert sorted(lines) == sorted(f"{name}={value}" for name, value in environment.items())
            where = self.make_host().resolve(str(tmp_path))
            spec = _spec("import os; print(os.getcwd())", cwd=where, is_cwd_resolved=True)
            async with self.make_host().open_process(spec) as process:
                assert (await _read_all(process)).strip() == where

    async def test_the_exit_code_of_a_killed_process_is_its_signal(self) -> None:
        with anyio.fail_after(_LIMIT_S):
            async with self.make_host().open_process(_spec(_SLEEP)) as process:
                os.kill(process.pid, signal.SIGTERM)
                assert await process.wait() == -signal.SIGTERM

    async def test_leaving_the_scope_ends_the_process_and_its_children(self) -> None:
        spec = _spec(_PARENT, stop=((signal.SIGTERM, _LIMIT_S),))
        with anyio.fail_after(_LIMIT_S):
            async with self.make_host().open_process(spec) as process:
                child = int(await _read_line(process))
            assert not _is_alive(child)
        assert process.returncode == -signal.SIGTERM

    async def test_leaving_the_scope_kills_a_process_that_does_not_stop(self) -> None:
        spec = _spec(_STUBBORN, stop=((signal.SIGTERM, 0.05),))
        with anyio.fail_after(_LIMIT_S):
            async with self.make_host().open_process(spec) as process:
                assert await _read_line(process) == "ready"
        assert process.returncode == -signal.SIGKILL

    async def test_a_forced_stop_does_not_wait(self) -> None:
        spec = _spec(
            _STUBBORN, stop=((signal.SIGTERM, 3600.0),), force_stop=anyio.lowlevel.checkpoint
        )
        with anyio.fail_after(_LIMIT_S):
            async with self.make_host().open_process(spec) as process:
                assert await _read_line(process) == "ready"
        assert process.returncode == -signal.SIGKILL

    async def test_leaving_the_scope_ends_a_tagged_process_in_another_session(self) -> None:
        code = _PARENT.replace("stdout=-1)\nchild", "stdout=-1, start_new_session=True)\nchild")
        spec = _spec(code, env={**os.environ, TAG_VARIABLE: self.an_attempt().tag})
        with anyio.fail_after(_LIMIT_S):
            async with self.make_host().open_process(spec) as process:
                child = int(await _read_line(process))
                assert os.getsid(child) == child
            assert not _is_alive(child)

    async def test_leaving_the_scope_ends_other_processes_of_the_group(self) -> None:
        code = _PARENT.replace("time.sleep(300)\n", "")
        with anyio.fail_after(_LIMIT_S):
            async with self.make_host().open_process(_spec(code)) as process:
                child = int(await _read_all(process))
                assert await process.wait() == 0
                assert os.getpgid(child) == process.pid
            assert not _is_alive(child)

    async def test_an_error_in_the_scope_is_raised_unchanged(self) -> None:
        with anyio.fail_after(_LIMIT_S), pytest.raises(KeyError, match="mine"):
            async with self.make_host().open_process(_spec(_SLEEP)):
                raise KeyError("mine")

    async def test_a_cancelled_scope_ends_its_process(self) -> None:
        with anyio.fail_after(_LIMIT_S):
            with anyio.CancelScope() as scope:
                async with self.make_host().open_process(_spec(_SLEEP)) as process:
                    scope.cancel()
                    await process.wait()
            assert scope.cancelled_caught
        assert process.returncode in (-signal.SIGINT, 1)

    async def test_a_failed_start_gives_the_reason(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        (tmp_path / "link").symlink_to("/")
        spec = _spec("")
        for wrong, code in (
            (evolve(spec, argv=["no-such-program"]), "provider_unavailable"),
            (evolve(spec, argv=[str(tmp_path / "plain")]), "provider_unavailable"),
            (evolve(spec, argv=[sys.executable, "nul\0"]), "invalid_config"),
            (evolve(spec, env={"A=B": "1"}), "invalid_config"),
            (evolve(spec, cwd=str(tmp_path / "missing")), "invalid_config"),
            (evolve(spec, cwd=str(tmp_path / "plain")), "invalid_config"),
            (evolve(spec, cwd=str(tmp_path / "link"), is_cwd_resolved=True), "invalid_config"),
        ):
            with anyio.fail_after(_LIMIT_S), pytest.raises(AgentFailed) as caught:
                async with self.make_host().open_process(wrong):
                    raise AssertionError("it was started")
            assert caught.value.code == code, wrong

    def test_the_output_of_a_program_is_returned(self) -> None:
        host, env = self.make_host(), dict(os.environ)
        argv = [sys.executable, "-S", "-c"]
        assert host.output([*argv, "print('1.2')"], env=env, timeout_s=_LIMIT_S) == b"1.2\n"
        with pytest.raises(FileNotFoundError):
            host.output(["/no/such/program"], env=env, timeout_s=_LIMIT_S)
        with pytest.raises(TimeoutError):
            host.output([*argv, _SLEEP], env=env, timeout_s=0.05)

    async def test_private_files_exist_while_their_scope_is_open(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        async with self.make_host().private_files({"a": b"1", "b": b"2"}) as directory:
            contents = {path.name: path.read_bytes() for path in directory.iterdir()}
            assert contents == {"a": b"1", "b": b"2"}
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert stat.S_IMODE((directory / "a").stat().st_mode) == 0o600
            (directory / "more").mkdir()
        assert not directory.exists()

    def test_findings_have_a_hint(self) -> None:
        for finding in self.make_host().findings():
            assert finding.about
            assert finding.hint or finding.level == "ok"
