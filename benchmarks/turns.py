"""Measure a turn over HTTP with a function as the agent, in an existing session."""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from agent_orchestrator import Client, connect
from benchmarks import function_agents
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import agentd

PATIENCE_S: Final = 120.0
"""Seconds for a turn. A busy machine takes many for the first of an agent."""


async def turn(client: Client, session_id: str, text: str) -> tuple[float, str]:
    """Send a message and wait for its run; return the seconds it took and the answer."""
    started = time.perf_counter()
    sent = await client.send_message(session_id, text)
    assert sent.run is not None
    waited = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
    seconds = time.perf_counter() - started
    run = waited.run
    check(run.status == "completed" and run.result, f"the run ended {run.status}: {run.error}")
    assert run.result is not None
    return seconds, run.result.text


async def check_log(client: Client, session_id: str, turns: int) -> None:
    """Check that the session's log has no gap and the expected number of completed runs."""
    events = [event async for event in client.events(session_id)]
    check(
        [event.seq for event in events] == list(range(1, len(events) + 1)),
        f"the log of {session_id} is not gapless",
    )
    completed = sum(event.event_type == "run.completed" for event in events)
    check(completed == turns, f"{completed} of {turns} runs completed in the log")


async def turns_per_second(
    times: int, sessions: Sequence[Callable[[], Awaitable[object]]]
) -> float:
    """Run so many turns of each session, the sessions all at once, and return how many there are in a second."""

    async def several(one: Callable[[], Awaitable[object]]) -> None:
        for _ in range(times):
            await one()

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for one in sessions:
            tasks.start_soon(several, one)
    return times * len(sessions) / (time.perf_counter() - started)


def in_turn(number: int, count: int) -> list[int]:
    """Return the order of a round. Each goes first in turn, as one may profit from the one before."""
    return [(number + place) % count for place in range(count)]


def measure(effort: Effort, directory: Path) -> list[Figure]:
    count = effort.of(full=300, quick=60, smoke=3)
    with agentd(directory, config=function_agents.ECHO) as daemon:
        median = anyio.run(partial(_median_turn, daemon.url, count))
    return [
        Figure(
            name="turn with an in-process function over HTTP",
            value=median * 1000,
            bound=10,
            unit="ms",
            detail=f"median of {count}",
        )
    ]


async def _median_turn(url: str, count: int) -> float:
    taken = []
    async with connect(url) as client:
        session = await client.create_session()
        for number in range(-count // 10, count):  # the first tenth warms up
            seconds, answer = await turn(client, session.id, f"turn {number}")
            check(answer == f"echo: turn {number}", f"the answer was {answer!r}")
            if number >= 0:
                taken.append(seconds)
        await check_log(client, session.id, count + -(-count // 10))
    return sorted(taken)[len(taken) // 2]
