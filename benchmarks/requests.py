"""Measure when another client sees an agent's question, and when the agent gets the answer.

The agents are functions in agentd. Both processes use the machine's monotonic
clock, which they share. Each time is taken before the step that it measures.
"""

import statistics
import time
from functools import partial
from pathlib import Path

import anyio

from agent_orchestrator import Client, connect
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.operations.events import CaughtUp, StreamItem, StreamRequest
from agent_orchestrator.ports.transport import Subscription
from benchmarks import function_agents
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import agentd
from benchmarks.turns import turn

AT_ONCE = 20
"""Connections that set agents to asking."""

_PATIENCE_S = 60.0
_LOOK_S = 0.05
"""Nothing is measured while this is waited for."""


def measure(effort: Effort, directory: Path) -> list[Figure]:
    count = effort.of(full=200, quick=50, smoke=3)
    waiting = effort.of(full=1000, quick=1000, smoke=20)
    with (
        agentd(directory / "few", config=function_agents.ASKING) as few,
        agentd(directory / "many", config=function_agents.ASKING) as many,
    ):
        seen, resumed = anyio.run(partial(_asked_and_answered, few.url, count))
        alone, beside = anyio.run(partial(_turns_beside, few.url, many.url, waiting, count))
    return [
        Figure(
            name="from opening a request to seeing it on another client's stream",
            value=seen * 1000,
            bound=20,
            unit="ms",
            detail=f"median of {count}",
        ),
        Figure(
            name="from answering a request to its child agent continuing",
            value=resumed * 1000,
            bound=20,
            unit="ms",
            detail=f"median of {count}",
        ),
        Figure(
            name=f"turn while {waiting:,} runs wait for answers / while none wait",
            value=beside / alone,
            bound=2,
            detail=f"{beside * 1000:.1f} ms / {alone * 1000:.1f} ms, 4 workers",
        ),
    ]


async def _asked_and_answered(url: str, count: int) -> tuple[float, float]:
    """Return the median seconds to see a question, and to continue after its answer."""
    seen, resumed = [], []
    async with connect(url) as client, connect(url) as person:
        parent = await client.create_session(provider=MANUAL)
        async with person.transport.subscribe(StreamRequest((), "head")) as stream:
            (start,) = await stream.receive()
            check(isinstance(start, CaughtUp), f"the stream began with {start}")
            for number in range(-(count // 10), count):  # the first tenth warms up
                child = await client.spawn("ask", session_id=parent.id, provider="asking")
                request_id, asked_s = await _next_request(stream)
                began = time.monotonic()
                await person.resolve_request(request_id, "approve")
                run = (await client.wait_run(child.run.id)).run
                check(run.result is not None, f"the run ended {run.status}: {run.error}")
                assert run.result is not None
                status, went_on = run.result.text.split()
                check(status == "approved", f"the agent was told {status}")
                if number >= 0:
                    seen.append(asked_s)
                    resumed.append(float(went_on) - began)
        log = [event async for event in client.events(parent.id)]
        check(
            [event.seq for event in log] == list(range(1, len(log) + 1)),
            "the parent's log is not gapless",
        )
    return statistics.median(seen), statistics.median(resumed)


async def _next_request(stream: Subscription) -> tuple[str, float]:
    """Return the next request on a stream and the seconds since its agent opened it."""
    with anyio.fail_after(_PATIENCE_S):
        while True:
            items = await stream.receive()
            now = time.monotonic()
            for item in items:
                if isinstance(item, StreamItem) and item.event.event_type == "request.created":
                    data = item.event.data
                    if data["session_id"] == item.event.session_id:
                        return str(data["id"]), now - float(data["text"])


async def _turns_beside(idle_url: str, url: str, waiting: int, count: int) -> tuple[float, float]:
    """Return the median seconds of a turn while no run waits, and while many runs wait."""
    async with connect(idle_url) as idle, connect(url) as busy:
        async with anyio.create_task_group() as tasks:
            for place in range(AT_ONCE):
                tasks.start_soon(_set_asking, busy, len(range(place, waiting, AT_ONCE)))
        with anyio.fail_after(_PATIENCE_S):
            while await _waiting(busy) < waiting:  # noqa: ASYNC110 - the status has no notification
                await anyio.sleep(_LOOK_S)
        sessions = [
            (client, await client.create_session(provider="echo")) for client in (idle, busy)
        ]
        taken: list[list[float]] = [[], []]
        for number in range(-(count // 10), count):
            for (client, session), times in zip(sessions, taken, strict=True):
                seconds, answer = await turn(client, session.id, f"turn {number}")
                check(answer == f"echo: turn {number}", f"the answer was {answer!r}")
                if number >= 0:
                    times.append(seconds)
        check(await _waiting(busy) == waiting, "some of those that waited do not any more")
    return statistics.median(taken[0]), statistics.median(taken[1])


async def _waiting(client: Client) -> int:
    return (await client.status()).queue_counts.waiting_count


async def _set_asking(client: Client, count: int) -> None:
    for _ in range(count):
        session = await client.create_session(provider="asking")
        await client.send_message(session.id, "ask")
