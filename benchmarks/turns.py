"""Measure a turn over HTTP with a function as the agent, in an existing session."""

import time
from functools import partial
from pathlib import Path

import anyio

from agent_orchestrator import Client, connect
from benchmarks import agents
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import agentd


async def turn(client: Client, session_id: str, text: str) -> tuple[float, str]:
    """Send a message and wait for its run; return the seconds it took and the answer."""
    started = time.perf_counter()
    sent = await client.send_message(session_id, text)
    assert sent.run is not None
    waited = await client.wait_run(sent.run.id)
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


def measure(effort: Effort, directory: Path) -> list[Figure]:
    count = effort.of(full=300, quick=60, smoke=3)
    with agentd(directory, config=agents.ECHO) as daemon:
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
