"""The daemon, and agents, are killed with real agents at work."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import psutil
from benchmarks.codex import NotMeasured, native_codex
from tests.chaos.daemon import Daemon, daemon
from tests.chaos.kills import Siege
from tests.chaos.outcome import Effort, Outcome, Skipped
from tests.chaos.real_agents import IDLE_S, Scripted, check_conversations, provider, real_agent
from tests.chaos.traffic import Ack, Traffic
from tests.codex.model_server import ModelServer, codex_env, write_codex_home

from agent_orchestrator import Client, Run, RunStatus, connect
from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.model import MANUAL

AGENTS: Final = 16

_PATIENCE_S: Final = 300.0

CONFIG: Final = """\
[providers.codex]
runner = "codex-exec"
command = {codex}
sandbox = "danger-full-access"
env = {{ set = {{ {env} }} }}

[routing]
default = "codex"
"""


async def codex_restart(effort: Effort, directory: Path) -> Outcome:
    """``kill -9`` while 16 real codex work, each with a command of its own; they go on after it."""
    outcome = Outcome("codex", effort.seed)
    try:
        codex = native_codex()
    except NotMeasured as reason:
        raise Skipped(str(reason)) from None
    count = effort.tries(AGENTS, 2)
    for number in range(effort.tries(5, 1)):
        outcome.tries += 1
        place = directory / f"{number}"
        place.mkdir(parents=True)
        with ModelServer() as models:
            env = codex_env(write_codex_home(place / "home", models.port))
            config = CONFIG.format(
                codex=json.dumps(codex),
                env=", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items()),
            )
            arguments = ("--max-concurrency", str(count))
            with daemon(place, config=config, arguments=arguments) as one:
                under = Siege(
                    one, Traffic(one.url, effort, effort.chance("codex", number), outcome), outcome
                )
                if not await under.start():
                    return outcome
                with anyio.fail_after(_PATIENCE_S):
                    await _at_work(under.traffic, count)
                # Each is somewhere else in its turn.
                await anyio.sleep(under.traffic.chance.uniform(0, 2))
                await anyio.to_thread.run_sync(one.kill)
                await under.check()
                if not await under.start():
                    return outcome
                async with connect(one.url) as client:
                    await _all_ended(client, under.traffic, outcome)
                await under.finish()
    return outcome


async def _at_work(traffic: Traffic, count: int) -> None:
    """Send each of so many sessions a message; return when the agents of all have begun."""
    async with connect(traffic.url) as client, anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(_begun, client, traffic, number)


async def _begun(client: Client, traffic: Traffic, number: int) -> None:
    session = await client.create_session()
    text = f"shell sleep 2; echo {number}\nsay done {number}"
    await _send(client, traffic, session.id, f"k0-{number}", text)
    await _happened(client, session.id, ["tool.started"])


async def _send(client: Client, traffic: Traffic, session_id: str, key: str, text: str) -> str:
    """Send a message and return its run."""
    sent = await client.send_message(session_id, text, idempotency_key=key)
    assert sent.run is not None
    traffic.acks[key] = Ack(key, text, sent.message.id, session_id, sent.run.id)
    traffic.outcome.acknowledged += 1
    return sent.run.id


async def _happened(
    client: Client, session_id: str, event_types: Sequence[str], after: int = 0
) -> None:
    """Return when a session has an event of one of these types."""
    async with client.events(session_id, cursor=after, follow=True) as events:
        async for event in events:
            if event.event_type in event_types:
                break


async def _ended(client: Client, run_id: str) -> Run:
    """Return a run when it has ended, or after ``_PATIENCE_S``."""
    with anyio.move_on_after(_PATIENCE_S):
        run = await client.get_run(run_id)
        while not is_terminal(run.status):
            run = (await client.wait_run(run_id, timeout_s=30)).run
    return run


async def _all_ended(client: Client, traffic: Traffic, outcome: Outcome) -> None:
    """Expect that every run goes on after the crash, with its conversation, to its end."""
    for ack in traffic.acks.values():
        assert ack.run_id is not None
        run = await _ended(client, ack.run_id)
        log = [event async for event in client.events(ack.session_id)]
        threads = [event for event in log if event.event_type.startswith("thread.")]
        if run.status is not RunStatus.COMPLETED or run.provider == MANUAL:
            outcome.fault("broken", f"{run.id} is {run.status} after the crash: {run.error}")
        elif run.attempt > 1 and len(threads) != 1:
            outcome.fault("doubled", f"{run.id} went on with another conversation")


# --- agents with a process for each session ---------------------------------------------------

_STAGES: Final[Mapping[str, str]] = {
    "starting": "",
    "answering": "\nstream 10000 50 word",
    "commanding": "\nshell setsid sleep 900 >/dev/null 2>&1 & sleep 901\nsay unheard",
    "thinking": "\nhang",
    "idle": "",
}
"""The states of an agent when it is killed, and how a message goes on that brings it there."""

_FEWEST: Final = 3
"""The first stages, which are always tried."""


async def claude(effort: Effort, directory: Path) -> Outcome:
    """``kill -9`` of each Claude Code, and of the daemon, in several states of a turn."""
    return await _killed("claude", effort, directory)


async def opencode(effort: Effort, directory: Path) -> Outcome:
    """``kill -9`` of each opencode, and of the daemon, in several states of a turn."""
    return await _killed("opencode", effort, directory)


async def _killed(name: str, effort: Effort, directory: Path) -> Outcome:
    outcome = Outcome(name, effort.seed)
    try:
        agent = real_agent(name)
    except NotMeasured as reason:
        raise Skipped(str(reason)) from None
    stages = list(_STAGES)[: effort.tries(len(_STAGES), _FEWEST)]
    for number in range(effort.tries(10, 1)):
        outcome.tries += 1
        place = directory / f"{number}"
        place.mkdir(parents=True)
        with agent.server() as model:
            config = provider(agent, place, model) + f'[routing]\ndefault = "{name}"\n'
            arguments = ("--max-concurrency", f"{len(stages)}")
            with daemon(place, config=config, arguments=arguments) as one:
                traffic = Traffic(one.url, effort, effort.chance(name, number), outcome)
                under = Siege(one, traffic, outcome, kept_s=2 * IDLE_S)
                if not await under.start():
                    return outcome
                with anyio.fail_after(3 * _PATIENCE_S):
                    if not await _kills(Scripted(agent, model), under, stages):
                        return outcome
                await under.finish()
    return outcome


async def _kills(scripted: Scripted, under: Siege, stages: Sequence[str]) -> bool:
    """Kill the agents, then the daemon. Return whether the daemon could be started again."""
    one, traffic, outcome = under.one, under.traffic, under.outcome
    async with connect(one.url) as client:
        sessions = [(await client.create_session(approvals="allow")).id for _ in stages]
        # Alone: opencode 1.18 crashes if several at once make its home.
        await _ended(client, await _send(client, traffic, sessions[0], "first", "say first"))
        await _bring(client, under, sessions, stages, "agents")
        await anyio.sleep(traffic.chance.uniform(0, 0.5))
        for pid in _agents(one, scripted):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await _runs_end(client, traffic)
        if left := _commands(one):
            outcome.fault(
                "orphans", f"{len(left)} commands are alive after their agents", len(left)
            )
        await _bring(client, under, sessions, stages, "daemon")
        await anyio.sleep(traffic.chance.uniform(0, 0.5))
    await anyio.to_thread.run_sync(one.kill)
    await under.check()
    if not await under.start():
        return False
    async with connect(one.url) as client:
        await _runs_end(client, traffic)
        for number, session_id in enumerate(sessions):
            await _send(client, traffic, session_id, f"last-{number}", f"say last {number}")
        await _runs_end(client, traffic)
        await check_conversations(client, [scripted], traffic, outcome)
    return True


async def _bring(
    client: Client, under: Siege, sessions: Sequence[str], stages: Sequence[str], name: str
) -> None:
    """Bring each session into its state, with a message behind it in the queue."""
    at_work: list[str] = []

    async def bring(session_id: str, stage: str) -> None:
        key = f"{name}-{stage}"
        after = (await client.get_session(session_id)).last_seq
        text = f"say {key}{_STAGES[stage]}"
        run_id = await _send(client, under.traffic, session_id, key, text)
        if stage == "idle":
            await _ended(client, run_id)
            return
        await _send(client, under.traffic, session_id, f"{key}-queued", f"say {key}-queued")
        if stage != "starting":
            await _happened(client, session_id, [*_AT_WORK, "run.failed"], after)
            run = await client.get_run(run_id)
            if run.status is RunStatus.RUNNING:
                at_work.append(stage)
            else:
                under.outcome.fault("broken", f"{key} is {run.status} before a kill: {run.error}")

    async with anyio.create_task_group() as tasks:
        for session_id, stage in zip(sessions, stages, strict=True):
            tasks.start_soon(bring, session_id, stage)
    expected = 2 * at_work.count("commanding")
    while len(_commands(under.one)) < expected:
        await anyio.sleep(0.05)


_AT_WORK: Final = ("agent.message.delta", "agent.message")

_KILLED: Final = {"agents-starting-queued", *(f"agents-{stage}" for stage in _STAGES)}
"""The messages whose agent may be at work on them when all agents are killed."""


async def _runs_end(client: Client, traffic: Traffic) -> None:
    """Expect that all runs complete, but for those whose agent was killed."""
    for ack in traffic.acks.values():
        assert ack.run_id is not None
        run = await _ended(client, ack.run_id)
        crashed = run.error is not None and run.error.code == "agent_crashed"
        if run.status is RunStatus.COMPLETED or (crashed and ack.key in _KILLED):
            continue
        problem = f"{ack.key}: {run.id} is {run.status}: {run.error}"
        if not any(problem in known for known in traffic.outcome.problems):
            traffic.outcome.fault("broken", problem)


def _agents(one: Daemon, scripted: Scripted) -> list[int]:
    """Return the processes of the agents themselves."""
    return [pid for pid in one.family() if _name(pid) == scripted.agent.process]


def _commands(one: Daemon) -> list[int]:
    """Return the processes of the commands that agents run."""
    return [pid for pid in one.family() if _name(pid) == "sleep"]


def _name(pid: int) -> str:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).name()
    return ""
