import os
import resource
import signal
import sys
import time
import uuid
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import anyio
import psutil
import pytest
from loops import ON_ONE_LOOP
from pids import is_gone

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.hosts import process as pipes
from agent_orchestrator.hosts.linux.supervisor import fork_server
from agent_orchestrator.hosts.process import STDERR_TAIL
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.runners.process import agent_process
from agent_orchestrator.testing.runners import tagged_processes

pytestmark = pytest.mark.anyio

AGENT = [sys.executable, "-S", str(Path(__file__).parents[1] / "runners" / "agents.py")]


class Stage:
    """Runs the scenes of the test agents with a new tag."""

    def __init__(self, cwd):
        self.tag = uuid.uuid4().hex
        self.env = {**os.environ, TAG_VARIABLE: self.tag}
        self.cwd = str(cwd)

    @asynccontextmanager
    async def play(self, *scene, **options):
        argv = [*AGENT, *map(str, scene)]
        with anyio.fail_after(120):
            async with agent_process(argv, cwd=self.cwd, env=self.env, **options) as process:
                yield process

    async def all(self, *scene, **options):
        """Run a scene to its end; return its lines, exit code and stderr."""
        async with self.play(*scene, **options) as process:
            lines = [line.data async for line in process.lines()]
            return lines, await process.wait(), process.stderr_tail


@pytest.fixture
async def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    assert tagged_processes(stage.tag) == []


async def first_line(process):
    async for line in process.lines():
        return line.data
    raise AssertionError("it said nothing")


async def test_process_has_prompt_lines_exit_code_and_start_id(stage):
    async with stage.play("echo", stdin=b"one\ntwo\n") as process:
        assert process.start_id == process_start_id(process.pid)
        assert os.getsid(process.pid) == process.pid
        assert process.returncode is None
        assert [line.data async for line in process.lines()] == [b"one", b"two"]
        assert await process.wait() == 0
    assert process.returncode == 0
    assert not psutil.pid_exists(process.pid)


async def test_prompt_is_sent_only_when_somebody_reads_the_output(stage):
    async with stage.play("prompt", stdin=b"print done") as process:
        await anyio.sleep(0.3)  # time in which an agent that had its prompt would be done
        assert process.returncode is None
        assert await first_line(process) == b"done"


@pytest.mark.parametrize(
    ("scene", "lines"),
    [
        ("invalid-utf8", [b"caf\xe9 \xff\xfe"]),
        ("nul", [b"a\0b"]),
        ("separators", ["one\u2028still one\u0085still\rone".encode(), b"two\r"]),
        ("no-newline", [b"first", b"last"]),
    ],
)
async def test_special_bytes_in_lines_are_kept(stage, scene, lines):
    assert await stage.all(scene) == (lines, 0, "")


@ON_ONE_LOOP
async def test_line_of_50_megabytes_is_read(stage):
    size = 50 * 2**20
    (big, after), code, _ = await stage.all("big-line", size)
    assert (len(big), after, code) == (size, b"after", 0)


@ON_ONE_LOOP
async def test_line_beyond_the_limit_is_cut_and_the_next_is_complete(stage):
    async with stage.play("big-line", 70 * 2**20) as process:
        big, after = [line async for line in process.lines()]
    assert big.truncation.size == 70 * 2**20
    assert len(big.data) == 2**16
    assert (after.data, after.truncation) == (b"after", None)


@ON_ONE_LOOP
async def test_million_short_lines_are_read(stage):
    count = 0
    async with stage.play("tiny-lines", 1_000_000) as process:
        async for _ in process.lines():
            count += 1
    assert count == 1_000_000


async def test_closed_stdout_ends_the_lines_and_not_the_process(stage):
    async with stage.play("close-stdout") as process:
        assert [line.data async for line in process.lines()] == [b"bye"]
        assert process.returncode is None
        assert await process.wait() == 4


async def test_a_grandchild_that_holds_stdout_is_not_waited_for(stage):
    assert await stage.all("holder") == ([b"left it behind"], 0, "")


async def test_untagged_orphan_is_not_waited_for_and_is_killed(stage):
    [pid], code, _ = await stage.all("unreachable")
    assert code == 0
    assert is_gone(int(pid))


async def test_other_process_that_holds_stdout_does_not_block_the_reader(stage):
    began = time.perf_counter()
    async with (
        stage.play("echo", stdin=b"prompt") as process,
        await anyio.open_file(f"/proc/{process.pid}/fd/1", "wb"),
    ):
        assert [line.data async for line in process.lines()] == [b"prompt"]
    assert process.returncode == 0
    assert time.perf_counter() - began > 1


async def test_slow_reader_gets_all_lines_after_the_agent_has_ended(stage):
    async with stage.play("big-pipe") as process:
        lines = process.lines()
        seen = [await anext(lines)]
        await process.wait()
        await anyio.sleep(2.5)  # past both graces for the pipe's end: stdout is not waited for
        seen += [line async for line in lines]
    assert len(seen) == 200_000


@ON_ONE_LOOP
async def test_stderr_is_drained_and_its_end_is_kept(stage):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines, code, tail = await stage.all("flood-stderr", 1_000_000_000)
    assert (lines, code) == ([b"done"], 0)
    assert len(tail) == STDERR_TAIL
    assert tail.endswith("e\nthe end\n")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


async def test_on_stderr_is_called_as_stderr_comes(stage):
    reported = []
    await stage.all("complain", on_stderr=reported.append)
    assert reported[-1] == "warming up\nno such model\n\n"


@pytest.mark.parametrize("scene", ["deaf", "deaf-open"])
async def test_agent_may_leave_its_prompt_unread(stage, scene):
    assert await stage.all(scene, stdin=b"p" * 1_000_000) == ([b"heard nothing"], 0, "")


async def test_long_prompt_arrives_complete(stage):
    prompt = os.urandom(500_000).hex().encode()
    assert await stage.all("echo", stdin=prompt) == ([prompt], 0, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_exit_code_of_a_process_killed_by_a_signal_is_negative(stage, number):
    _, code, _ = await stage.all("die", int(number))
    assert code == -number


@pytest.mark.parametrize("scene", ["setsid", "detached", "holder"])
async def test_no_process_is_left_after_a_normal_end(stage, scene):
    async with stage.play(scene, stdin=None) as process:
        await first_line(process)
        assert len(tagged_processes(stage.tag)) >= 1
        await process.write(b"go on\n")  # the agent exits only now
        await process.wait()
    assert tagged_processes(stage.tag) == []


@pytest.mark.parametrize("scene", ["forks", "last", "stubborn", "polite"])
@pytest.mark.parametrize("how", ["cancel", "error", "leave"])
async def test_no_process_is_left_if_the_scope_is_left_early(stage, scene, how):
    expected = pytest.raises(KeyError, match="mine") if how == "error" else nullcontext()
    with anyio.CancelScope() as scope, expected:
        grace = 0.5 if scene == "stubborn" else 60
        async with stage.play(scene, stop=[(signal.SIGINT, grace)]) as process:
            await first_line(process)
            if how == "cancel":
                scope.cancel()
                await anyio.sleep_forever()
            elif how == "error":
                raise KeyError("mine")
    assert scope.cancelled_caught == (how == "cancel")
    assert is_gone(process.pid)
    assert tagged_processes(stage.tag) == []
    assert process.returncode is not None
    assert (process.returncode == -signal.SIGKILL) == (scene == "stubborn")


async def test_stop_sequence_sends_one_signal_after_another(stage):
    async with stage.play("stubborn", stop=[(signal.SIGINT, 0.1), (signal.SIGHUP, 20)]) as process:
        await first_line(process)
    assert process.returncode == -signal.SIGHUP


async def test_process_group_is_killed_if_the_agent_has_no_tag(stage):
    argv = ["sh", "-c", "sleep 300 & echo $!"]
    with anyio.fail_after(60):
        async with agent_process(argv, cwd="/", env=os.environ) as process:
            child = int(await first_line(process))
            await process.wait()
            assert not is_gone(child)
    assert is_gone(child)


async def test_child_with_a_clean_environment_and_a_new_session_is_killed(stage):
    async with stage.play("clean-child") as process:
        await first_line(process)
        [child] = psutil.Process(process.pid).children()
        while child.name() != "sleep":  # nothing reports an execve
            await anyio.sleep(0.001)
        assert TAG_VARIABLE not in child.environ()
    assert is_gone(child.pid)


@pytest.mark.parametrize("turns", range(12))
async def test_start_can_be_cancelled_at_any_step(stage, turns):
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel():
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

            tasks.start_soon(cancel)
            async with stage.play("last") as process:
                await process.wait()
    assert scope.cancelled_caught


@pytest.mark.parametrize("when", ["before", "while it is asked"])
async def test_a_forced_stop_does_not_wait_for_the_stop_sequence(stage, when):
    force_stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(45):
            async with stage.play(
                "stubborn",
                stop=[(signal.SIGINT, 60), (signal.SIGTERM, 60)],
                force_stop=force_stop.wait,
            ) as process:
                assert await first_line(process)
                if when == "before":
                    force_stop.set()
                else:
                    tasks.start_soon(_after, 0.3, force_stop.set)
    assert process.returncode == -signal.SIGKILL


async def _after(seconds, what):
    await anyio.sleep(seconds)
    what()


async def test_stderr_held_open_by_a_grandchild_is_not_waited_for(stage, monkeypatch):
    monkeypatch.setattr(pipes, "_PIPE_GRACE", 600)
    async with stage.play("setsid") as process:
        assert [line.data async for line in process.lines()] == [b"ready"]
        assert await process.wait() == 0


async def test_no_descriptor_is_left_after_twenty_concurrent_agents(stage):
    before = psutil.Process().num_fds()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(stage.all, "setsid")
    assert psutil.Process().num_fds() <= before + 1


async def test_start_waits_while_no_file_descriptor_is_free(stage, caplog):
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with fork_server() as held:
        await held.prepare()
        await stage.all("echo")
        before = psutil.Process().num_fds()
        free = os.dup(0)
        os.close(free)
        began = []

        async def run() -> None:
            began.append(await stage.all("echo", stdin=b"again"))

        try:
            for more in range(6):
                resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, most))
                with anyio.move_on_after(0.05) as waits:
                    await stage.all("echo")
                assert waits.cancelled_caught
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                assert not began
                resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
        assert psutil.Process().num_fds() == before
        assert began[0][0] == [b"again"]
        warnings = [one for one in caplog.records if "start of an agent is delayed" in one.message]
        assert len(warnings) <= 1  # once a minute


async def test_agent_inherits_no_file_descriptor(stage):
    inherited = os.dup(0)
    try:
        os.set_inheritable(inherited, True)  # noqa: FBT003 - its name
        [line], _, _ = await stage.all("descriptors")
    finally:
        os.close(inherited)
    assert line == b"[0, 1, 2, 3]"  # 3 is the descriptor that lists the directory


async def test_resolved_directory_with_a_symbolic_link_is_refused(stage, tmp_path):
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "circle").symlink_to("circle")

    async def where(cwd, **options):
        argv = ["pwd", "-P"]
        async with agent_process(argv, cwd=str(cwd), env=stage.env, **options) as process:
            return [line.data.decode() async for line in process.lines()]

    with anyio.fail_after(60):
        async with fork_server():  # one supervisor for all: a refusal must leave no state in it
            below = tmp_path / "real/below"
            assert await where(below, is_cwd_resolved=True) == [str(below)]
            assert await where(tmp_path / "link/below") == [str(below)]
            places = [
                ("link/below", "elsewhere"),
                ("link", "elsewhere"),
                ("circle", "loop of symbolic links"),
            ]
            for name, words in places:
                with pytest.raises(AgentFailed, match=words) as caught:
                    await where(tmp_path / name, is_cwd_resolved=True)
                assert caught.value.code == "invalid_config"
                assert f"the working directory {tmp_path / name} " in caught.value.message
            assert await where(below, is_cwd_resolved=True) == [str(below)]


async def test_file_that_is_not_executable_does_not_hide_a_program_later_on_path(stage, tmp_path):
    for name in ("file", "folder", "program", "last"):
        (tmp_path / name).mkdir()
    (tmp_path / "file" / "agent").write_text("no program")
    (tmp_path / "folder" / "agent").mkdir()
    program = tmp_path / "program" / "agent"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)

    async def on_path(*names):
        env = stage.env | {"PATH": ":".join(str(tmp_path / name) for name in names)}
        async with agent_process(["agent"], cwd=str(tmp_path), env=env) as process:
            return [line.data async for line in process.lines()]

    for hiding in (["file"], ["folder"], ["file", "nowhere", "folder"]):
        assert await on_path(*hiding, "program", "last") == [b"found"]
        with pytest.raises(AgentFailed, match="not executable"):
            await on_path(*hiding, "nowhere", "last")


async def test_error_of_a_failed_start_names_the_cause(stage, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    script = tmp_path / "script"
    script.write_text("#!/nowhere/interpreter\n")
    junk = tmp_path / "junk"
    junk.write_bytes(b"\0\1\2")
    for path in (script, junk):
        path.chmod(0o755)
    cases = [
        (["no-such-program"], tmp_path, "provider_unavailable", "not installed"),
        ([str(plain)], tmp_path, "provider_unavailable", "not executable"),
        ([str(script)], tmp_path, "provider_unavailable", "interpreter"),
        ([str(junk)], tmp_path, "provider_unavailable", "Exec format"),
        (["true"], tmp_path / "nowhere", "invalid_config", "working directory"),
        (["true"], plain, "invalid_config", "working directory"),
        (["true", "a\0b"], tmp_path, "invalid_config", "null byte"),
        (["true", "\ud800"], tmp_path, "invalid_config", "surrogates"),
        (["true", "x" * 140_000], tmp_path, "invalid_config", "too long"),
    ]
    for argv, cwd, code, words in cases:
        with pytest.raises(AgentFailed, match=words) as caught:
            async with agent_process(argv, cwd=str(cwd), env=stage.env):
                pytest.fail("it started")
        assert caught.value.code == code
