"""Agents whose supervisor or fork server is stopped, killed or sends garbage; reuse of supervisors."""

import contextlib
import errno
import os
import resource
import signal
import socket
import sys
import uuid
from pathlib import Path

import anyio
import anyio.lowlevel
import psutil
import pytest
from pids import is_gone

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.hosts.linux import forkserver as program
from agent_orchestrator.hosts.linux.orphans import tag_limit
from agent_orchestrator.hosts.linux.supervisor import (
    MAX_IDLE,
    ForkServerClient,
    SupervisedAgent,
    SupervisorLink,
    fork_server,
)
from agent_orchestrator.hosts.linux.supervisor import _send as send
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.runners.process import agent_process
from agent_orchestrator.testing.runners import tagged_processes

pytestmark = pytest.mark.anyio

AGENT = [sys.executable, "-S", str(Path(__file__).parents[1] / "runners" / "agents.py")]


@pytest.fixture
def play(tmp_path):
    """Run scenes of the test agents; none may leave a process behind."""
    tag = uuid.uuid4().hex
    env = {**os.environ, TAG_VARIABLE: tag}

    def play(*scene, **options):
        return agent_process([*AGENT, *scene], cwd=str(tmp_path), env=env, **options)

    play.mark = tag
    yield play
    assert tagged_processes(tag) == []


async def begun(process):
    """Wait for the agent's first line."""
    async for line in process.lines():
        return line.data
    raise AssertionError("it said nothing")


def is_alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def supervisor_of(process):
    """Return the supervisor of a running agent, for example of one that waits for its stdin."""
    return psutil.Process(process.pid).parent()


def fork_servers():
    """Return the fork servers of this process. Its other children, such as agentd, have their own."""
    found = []
    for one in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "forkserver.py" in str(one.cmdline()):
                found.append(one)
    return found


async def test_agent_of_a_killed_supervisor_crashed(play):
    with anyio.fail_after(45):
        async with play("escaped") as process:
            await begun(process)
            everything = supervisor_of(process).children(recursive=True)
            assert len(everything) == 2
            supervisor_of(process).kill()
            with pytest.raises(AgentFailed, match="supervisor") as caught:
                await process.wait()
            assert [line async for line in process.lines()] == []
    assert caught.value.code == "agent_crashed"
    assert not any(map(is_alive, everything))


async def test_agent_is_killed_though_its_supervisor_is_stopped(play):
    with anyio.fail_after(60):
        async with play("stubborn", stop=[(signal.SIGINT, 0.1)]) as process:
            await begun(process)
            supervisor = supervisor_of(process)
            supervisor.suspend()
    assert is_gone(process.pid)
    assert not is_alive(supervisor)


async def test_agents_survive_the_fork_server_and_later_ones_get_a_new_one(play):
    with anyio.fail_after(60):
        async with fork_server() as held:
            await held.prepare()
            async with play("echo", stdin=b"first") as first:
                lost = supervisor_of(first).parent()
                lost.kill()
                async with play("echo", stdin=b"second") as second:
                    assert supervisor_of(second).parent() != lost
                    assert await begun(second) == b"second"
                    assert await second.wait() == 0
                assert await begun(first) == b"first"
                assert await first.wait() == 0
            assert not lost.is_running()


async def test_idle_supervisor_starts_an_agent_though_the_fork_server_is_stopped(play):
    with anyio.fail_after(60):
        async with fork_server():
            async with play("echo", stdin=b"one") as process:
                supervisor = supervisor_of(process)
                assert await begun(process) == b"one"
                await process.wait()
            supervisor.parent().suspend()
            async with play("echo", stdin=b"two") as process:
                assert supervisor_of(process) == supervisor
                assert await begun(process) == b"two"
        assert not is_alive(supervisor)


async def test_start_that_hangs_can_be_cancelled(play):
    """The supervisor that would start the agent is stopped, so the start never happens."""
    async with fork_server() as held:
        await held.prepare()
        with anyio.fail_after(45):
            while not (ours := fork_servers()) or not ours[0].children():
                await anyio.sleep(0.01)
        [its_fork_server] = ours
        [supervisor] = its_fork_server.children()
        supervisor.suspend()
        with anyio.fail_after(45, shield=True), anyio.move_on_after(0.05) as timeout:
            async with play("last"):
                raise AssertionError("it was started")
        assert timeout.cancelled_caught
        assert not is_alive(its_fork_server)
        supervisor.resume()
        with anyio.fail_after(45):
            while is_alive(supervisor):
                await anyio.sleep(0.01)
        async with play("echo", stdin=b"one") as process:
            assert await begun(process) == b"one"


async def test_start_cancelled_at_any_moment_leaves_no_process(play):
    async with fork_server() as held:
        await held.prepare()
        for milliseconds in range(12):
            with anyio.move_on_after(milliseconds / 1000):
                async with play("last", stop=()):
                    await anyio.sleep_forever()
            assert tagged_processes(play.mark) == []


async def test_prepared_supervisor_is_used_for_the_first_agent(play):
    async with fork_server() as held:
        await held.prepare()
        with anyio.fail_after(45):
            while not (ours := fork_servers()) or not ours[0].children():
                await anyio.sleep(0.01)
        [its_fork_server] = ours
        [ready] = its_fork_server.children()
        async with play("echo", stdin=b"one") as process:
            assert supervisor_of(process) == ready
            await process.wait()


async def test_a_supervisor_serves_one_agent_after_another(play, tmp_path):
    limits = {}
    with anyio.fail_after(60):
        async with fork_server():
            for number in range(30):
                argv = ["sh", "-c", "sleep 300 & cat /proc/$$/limits; exit 7"]
                env = {"PATH": os.environ["PATH"], TAG_VARIABLE: f"{play.mark}.{number}"}
                async with agent_process(argv, cwd=str(tmp_path), env=env) as process:
                    lines = process.lines()
                    text = b"\n".join([(await anext(lines)).data for _ in range(16)]).decode()
                    assert await process.wait() == 7
                    [locks] = [one for one in text.split("\n") if "file locks" in one]
                    limits[env[TAG_VARIABLE]] = int(locks.split()[3])
                assert tagged_processes(env[TAG_VARIABLE]) == []
            [its_fork_server] = fork_servers()
            [supervisor] = its_fork_server.children()
            assert supervisor.num_fds() <= 9
            assert supervisor.rlimit(10)[0] == resource.getrlimit(10)[0]
    assert limits == {tag: tag_limit(tag) for tag in limits}


async def test_failed_start_does_not_cost_a_supervisor(play):
    async with fork_server():
        for _ in range(3):
            with pytest.raises(AgentFailed, match="not installed"):
                async with agent_process(["no-such-program"], cwd="/", env={}):
                    pytest.fail("it started")
        [its_fork_server] = fork_servers()
        assert len(its_fork_server.children()) == 1


async def test_only_a_few_supervisors_are_kept_idle(play):
    async with fork_server():
        async with anyio.create_task_group() as tasks:

            async def one():
                async with play("deaf") as process:
                    await process.wait()

            for _ in range(3 * MAX_IDLE):
                tasks.start_soon(one)
        [its_fork_server] = fork_servers()
        with anyio.fail_after(45):
            while len(its_fork_server.children()) > MAX_IDLE:
                await anyio.sleep(0.01)
    assert not its_fork_server.is_running()


@pytest.mark.parametrize("how", ["leave", "cancel"])
async def test_fork_storm_is_killed_and_does_not_affect_other_agents(play, how):
    with anyio.fail_after(60):
        async with fork_server(), play("echo", stdin=b"calm") as bystander:
            with anyio.CancelScope() as scope:
                async with play("storm") as process:
                    assert await begun(process) == b"ready"
                    children = supervisor_of(process).children(recursive=True)
                    assert len(children) > 200
                    if how == "cancel":
                        scope.cancel()
                        await anyio.sleep_forever()
            assert not any(map(is_alive, children))
            assert await begun(bystander) == b"calm"
            assert await bystander.wait() == 0


async def test_agent_does_not_inherit_ignored_signals(play):
    # Ignored signals are inherited, but an agent must be interruptible all the same.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        async with play("last", stop=[(signal.SIGINT, 20)]) as process:
            await begun(process)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == -signal.SIGINT


# --- other data on the sockets ----------------------------------------------------------------

NONSENSE = [
    b"x" * 2**16,
    b"\xff\xfe\n",
    b"exit many\n",
    b"exit 99999999999999999999\n",
    b"started 99999999999 1\n",
    b"exit 0 0\n",
    b"\n" * 2**16,
    b"exit 0\n" * 2**13,
]


@pytest.mark.parametrize("said", NONSENSE, ids=lambda said: repr(said[:12]))
async def test_invalid_data_of_a_supervisor_ends_its_agent(play, monkeypatch, said):
    """Whatever comes, the event loop keeps running, the data is dropped, and the agent is killed."""
    start, made = ForkServerClient.start, []

    async def start_with_another_socket(self, *args, **options):
        kept = await start(self, *args, **options)
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        made.append((kept.supervisor, SupervisorLink(kept.supervisor.process, ours), theirs))
        return SupervisedAgent(kept.pid, kept.start_id, made[0][1])

    monkeypatch.setattr(ForkServerClient, "start", start_with_another_socket)
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    with anyio.fail_after(60):
        async with play("stubborn") as process, anyio.create_task_group() as tasks:
            [(real, supervisor, theirs)] = made
            theirs.settimeout(1)
            tasks.start_soon(count_turns)
            with theirs:
                await anyio.to_thread.run_sync(say, theirs, said)
                with contextlib.suppress(AgentFailed):
                    await process.wait()
            await process._process._all_ended.wait()
            tasks.cancel_scope.cancel()
    real.close()
    assert len(supervisor._buffer) < 2**12
    assert turns > 3


def say(link, data):
    with contextlib.suppress(OSError):  # the reader may have closed its end
        link.sendall(data)


def asked(size=None, count=1, body=b"/\0true", tag_limit=0, is_resolved=False):
    length = len(body) if size is None else size
    header = program.HEADER.pack(length, count, tag_limit, is_resolved, 0)
    return bytes([program.START]) + header + body


@pytest.mark.parametrize(
    ("request_", "answer", "is_served_after"),
    [
        (asked(size=2**63), ["refused", str(errno.E2BIG)], False),
        (asked(size=program.MAX_REQUEST + 1), ["refused", str(errno.E2BIG)], False),
        (asked(count=0), ["refused", str(errno.EINVAL)], True),
        (asked(body=b"/\0true\0=x"), ["refused", str(errno.EINVAL)], True),
        (asked(body=b"\0" * 2**20, count=2**63), ["astray", str(errno.ENOENT)], True),
        (asked(body=b"/\0" + b"x" * 2**20), ["refused", str(errno.ENAMETOOLONG)], True),
        (b"\x00" * 2**16, None, True),
    ],
    ids=["2**63", "too large", "no program", "no name", "NULs", "a long name", "signals"],
)
async def test_a_bad_request_to_a_supervisor_is_refused(request_, answer, is_served_after):
    with anyio.fail_after(60):
        async with fork_server() as held:
            supervisor = await held._idle_supervisor()
            await anyio.wait_readable(supervisor.link)
            assert await supervisor.receive() == ["ready"]
            await send(supervisor.link, request_, [])
            if answer is not None:
                assert await supervisor.receive() == answer
            if is_served_after:
                await send(supervisor.link, asked(), [])
                assert (await supervisor.receive())[0] == "started"
                assert (await supervisor.receive()) == ["exit", "0"]
                assert (await supervisor.receive()) == ["gone"]
            else:
                assert await supervisor.receive() == []
            supervisor.close()


async def test_descriptors_sent_with_another_request_are_closed(play):
    with anyio.fail_after(60):
        async with play("stubborn") as process:
            one = supervisor_of(process)
            before = one.num_fds()
            for _ in range(20):
                await send(process._process._supervisor.link, b"\0", [0, 1, 2])
            while one.num_fds() > before:
                await anyio.sleep(0.01)


async def test_arguments_beyond_the_limit_of_linux_are_refused(tmp_path):
    for env in ({f"V{n}": "x" * 100_000 for n in range(100)}, {"V": "x" * 2**18}):
        with pytest.raises(AgentFailed, match="128 KiB") as caught:
            async with agent_process(["true"], cwd=str(tmp_path), env={**os.environ, **env}):
                pass
        assert caught.value.code == "invalid_config"
