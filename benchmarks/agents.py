"""Measure turns of the real Claude Code and opencode through the gateway, compared with the agents alone."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import psutil
from attrs import field, frozen

from agent_orchestrator import Client, connect
from benchmarks.bare_agents import REAL_AGENTS, BareAgent, RealAgent
from benchmarks.codex import PROMPT, acknowledgement
from benchmarks.figures import Effort, Figure, check, warm
from benchmarks.processes import Server, agentd
from benchmarks.turns import PATIENCE_S, check_log, in_turn, turn, turns_per_second

SESSIONS: Final = 8
"""Number that work at once."""

_ENDS_S: Final = 90.0
"""Seconds in which the process of an idle session must have ended."""

CONFIG: Final = f"""\
[daemon]
max_concurrency = {SESSIONS}

[routing]
default = "{{name}}"
"""

_KEPT: Final = "tools = false\nmax_idle = 1000"
_ENDED: Final = "tools = false\nidle_s = 0.0"
"""The agents alone have no tools either. The processes of one provider are kept, those of the other ended."""


@frozen
class Subject:
    """An agent, its gateway, and how it runs without."""

    agent: RealAgent
    daemon: Server
    client: Client
    work: Path
    env: Mapping[str, str] = field(repr=False)
    argv: Sequence[str] = field(repr=False)

    async def session(self, provider: str | None = None) -> str:
        return (await self.client.create_session(cwd=str(self.work), provider=provider)).id

    async def turn(self, session_id: str) -> float:
        """Run a turn through the gateway and return the seconds it took."""
        seconds, answer = await turn(self.client, session_id, PROMPT)
        check(answer == acknowledgement(PROMPT), f"{self.agent.name} answered {answer!r}")
        return seconds

    def bare(self, conversation: str | None = None) -> AbstractAsyncContextManager[BareAgent]:
        """Return a scope in which the agent runs alone."""
        return self.agent.bare.opened(self.argv, self.env, self.work, conversation)

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the agent that the daemon has."""
        return [one for one in _children(self.daemon.pid) if _name(one) == self.agent.process]


def measure(effort: Effort, directory: Path) -> list[Figure]:
    for agent in REAL_AGENTS:
        agent.found()
    figures: list[Figure] = []
    for agent in REAL_AGENTS:
        figures += _measure(agent, effort, directory / agent.name)
    return figures


def _measure(agent: RealAgent, effort: Effort, directory: Path) -> list[Figure]:
    work, home = directory / "work", directory / "home"
    work.mkdir(parents=True)
    with agent.server() as models:
        config = CONFIG.format(name=agent.name)
        config += agent.provider(home, models.port, more=_KEPT)
        config += agent.provider(home, models.port, name="ended", more=_ENDED)
        with agentd(directory / "daemon", config=config) as daemon:
            figures, asked = anyio.run(
                partial(_figures, agent, effort, daemon, work, agent.alone(home, models.port))
            )
        prompts = [request.prompt for request in models.requests]
    check(prompts == [PROMPT] * asked, f"the model was asked {len(prompts)}, not {asked}")
    return figures


async def _figures(
    agent: RealAgent, effort: Effort, daemon: Server, work: Path, env: Mapping[str, str]
) -> tuple[list[Figure], int]:
    """Return the figures, and the number of turns that they took."""
    turns = effort.of(full=41, quick=16, smoke=1)
    resumed = effort.of(full=13, quick=6, smoke=1)
    rounds = effort.of(full=9, quick=5, smoke=1)
    sessions = effort.of(full=SESSIONS, quick=SESSIONS, smoke=1)
    live = effort.of(full=24, quick=12, smoke=1)
    async with connect(daemon.url) as client:
        first, argv = await _begun(client, work)
        subject = Subject(agent, daemon, client, work, env, argv)
        figures = [
            *await _turns(subject, first, turns, rounds, sessions),
            await _resumed(subject, resumed),
            await _memory(subject, live),
        ]
    return figures, 1 + 2 * turns + 4 * rounds * sessions + 2 * (1 + resumed) + live


async def _begun(client: Client, work: Path) -> tuple[str, Sequence[str]]:
    """Begin a session and return how its agent was started."""
    session = await client.create_session(cwd=str(work))
    sent = await client.send_message(session.id, PROMPT)
    assert sent.run is not None
    waited = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
    check(waited.run.status == "completed", f"the first run ended {waited.run}")
    invocation = (await client.diagnose_run(sent.run.id)).diagnostics.agent_invocation
    assert invocation is not None
    return session.id, invocation.argv


async def _turns(
    subject: Subject, first: str, count: int, rounds: int, sessions: int
) -> list[Figure]:
    """Compare turns of one session, and the turns per second of several that work at once."""
    name = subject.agent.name
    ids = [first, *[await subject.session() for _ in range(1, sessions)]]
    ours = [partial(subject.turn, session_id) for session_id in ids]
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(subject.bare()) for _ in ids]
        theirs = [partial(agent.turn, PROMPT) for agent in agents]
        taken = await _alternately(count, [ours[0], theirs[0]])
        rates = await _alternately(
            rounds, [partial(turns_per_second, 2, ours), partial(turns_per_second, 2, theirs)]
        )
    await check_log(subject.client, first, 1 + count + 2 * rounds)
    for session_id in ids[1:]:
        await check_log(subject.client, session_id, 2 * rounds)
    per_s, alone_per_s = map(warm, rates)
    return [
        _ratio(f"turn with {name}: gateway over HTTP / the agent alone", 1.15, taken),
        Figure(
            name=f"turns per second of {sessions} sessions with {name}: gateway / alone",
            value=per_s / alone_per_s,
            bound=0.9,
            limit="at least",
            detail=f"{per_s:.1f} / {alone_per_s:.1f}",
        ),
    ]


async def _resumed(subject: Subject, count: int) -> Figure:
    """Compare turns whose agent's process was ended after the turn before."""
    kept = set(subject.processes())
    session_id = await subject.session("ended")
    await subject.turn(session_id)
    async with subject.bare() as bare:
        await bare.turn(PROMPT)
    conversation = bare.conversation

    async def ours() -> float:
        await _until(lambda: not set(subject.processes()) - kept)
        return await subject.turn(session_id)

    async def alone() -> float:
        started = time.perf_counter()
        async with subject.bare(conversation) as bare:
            await bare.turn(PROMPT)
            seconds = time.perf_counter() - started
        check(
            bare.conversation == conversation, "the agent alone went on with another conversation"
        )
        return seconds

    taken = await _alternately(count, [ours, alone])
    await check_log(subject.client, session_id, 1 + count)
    runs = (await subject.client.list_runs(session_id=session_id)).runs
    check(len({run.thread_id for run in runs}) == 1, "the gateway went on with other conversations")
    return _ratio(
        f"first turn of {subject.agent.name} after its process was ended: gateway / alone",
        1.1,
        taken,
    )


async def _memory(subject: Subject, count: int) -> Figure:
    """Measure what sessions whose agent's process is kept take of the daemon's memory."""
    daemon = psutil.Process(subject.daemon.pid)
    kept, before = set(subject.processes()), daemon.memory_full_info().uss
    helpers = _helpers(daemon)
    for _ in range(count):
        await subject.turn(await subject.session())
    # An agent has helpers of the same name for moments.
    await _until(lambda: len(set(subject.processes()) - kept) == count)
    each = (daemon.memory_full_info().uss - before) / count / 1024
    supervisors = (_helpers(daemon) - helpers) / count / 1024
    return Figure(
        name=f"memory of agentd for each session with a live {subject.agent.name}",
        value=each,
        bound=300,
        unit="KiB",
        places=0,
        detail=f"{count} sessions; {supervisors:.0f} KiB more of its supervisors",
    )


def _children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _name(process: psutil.Process) -> str:
    """Return the name of a process; an empty one if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def _helpers(daemon: psutil.Process) -> int:
    """Return the memory that the daemon's own other processes do not share."""
    own = [one for one in _children(daemon.pid) if _name(one).startswith("agent-")]
    size = 0
    for one in own:
        with suppress(psutil.NoSuchProcess):  # that of an agent that has just ended
            size += one.memory_full_info().uss
    return size


async def _alternately(
    count: int, measured: Sequence[Callable[[], Awaitable[float]]]
) -> list[list[float]]:
    """Measure each so many times, in turn."""
    taken: list[list[float]] = [[] for _ in measured]
    for number in range(count):
        for place in in_turn(number, len(measured)):
            taken[place].append(await measured[place]())
    return taken


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(_ENDS_S):
        while not condition():  # noqa: ASYNC110 - a process ends
            await anyio.sleep(0.02)


def _ratio(name: str, bound: float, taken: Sequence[Sequence[float]]) -> Figure:
    ours, alone = map(warm, taken)
    detail = f"{ours * 1000:.1f} ms / {alone * 1000:.1f} ms"
    return Figure(name=name, value=ours / alone, bound=bound, detail=detail)
