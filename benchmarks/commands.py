"""Measure agentctl commands, compared with importing the HTTP client in Python."""

import sys
from functools import partial
from pathlib import Path

import anyio

from agent_orchestrator import connect
from benchmarks.figures import Effort, Figure, medians
from benchmarks.function_agents import ECHO
from benchmarks.processes import PROGRAMS, agentd, environment, timed


def measure(effort: Effort, directory: Path) -> list[Figure]:
    times = effort.of(full=25, quick=10, smoke=1)
    agentctl = str(PROGRAMS / "agentctl")
    with agentd(directory, config=ECHO) as daemon:
        run_id = anyio.run(partial(_make_run, daemon.url))
        env = environment({"AGENTCTL_URL": daemon.url})
        del env["PYTHONPATH"]
        get = [agentctl, "run", "get", "--run-id", run_id]
        commands = (
            partial(timed, [sys.executable, "-c", "import httpx; print('there')"], "there", env),
            partial(timed, [agentctl, "--version"], "agentctl", env),
            partial(timed, get, run_id, env),
        )
        medians(1, *commands)  # warms up
        imported, version, shown = medians(times, *commands)
    return [
        _figure("agentctl --version", version, imported, 1.5),
        _figure("agentctl run get", shown, imported, 3),
    ]


def _figure(command: str, seconds: float, imported: float, bound: float) -> Figure:
    return Figure(
        name=f"{command} / python -c 'import httpx'",
        value=seconds / imported,
        bound=bound,
        detail=f"{seconds * 1000:.0f} ms / {imported * 1000:.0f} ms",
    )


async def _make_run(url: str) -> str:
    async with connect(url) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "hello")
        assert sent.run is not None
        return (await client.wait_run(sent.run.id)).run.id
