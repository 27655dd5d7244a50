"""Measure a very long answer of an agent: what others notice of it, and what it takes."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import psutil

from agent_orchestrator import Client, connect
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import Server, agentd
from benchmarks.turns import PATIENCE_S

_CONFIG: Final = """\
[providers.long]
runner = "command"
argv = {argv}
output = "text"

[routing]
default = "long"
"""
_LINE: Final = "a line of an answer that does not end soon\n"
_WRITE: Final = "import sys; sys.stdout.write({line!r} * {count})"
_LOOK_S: Final = 0.02


def measure(effort: Effort, directory: Path) -> list[Figure]:
    count = effort.of(full=50_000_000, quick=50_000_000, smoke=500_000) // len(_LINE)
    argv = [sys.executable, "-c", _WRITE.format(line=_LINE, count=count)]
    with agentd(directory / "daemon", config=_CONFIG.format(argv=json.dumps(argv))) as daemon:
        return anyio.run(partial(_answer, daemon, count))


async def _answer(daemon: Server, count: int) -> list[Figure]:
    process, expected = psutil.Process(daemon.pid), _LINE * count
    waited_s, weights = [], []
    async with connect(daemon.url) as client, connect(daemon.url) as other:
        session_id = (await client.create_session()).id

        async def watch() -> None:
            while True:
                began = time.perf_counter()
                await other.get_session(session_id)
                waited_s.append(time.perf_counter() - began)
                weights.append(process.memory_info().rss)
                await anyio.sleep(_LOOK_S)

        before = process.memory_info().rss
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            sent = await client.send_message(session_id, "speak")
            assert sent.run is not None
            with anyio.fail_after(5 * PATIENCE_S):
                # Not by a call that returns the run, whose answer would count as well.
                while await _is_busy(client):  # noqa: ASYNC110 - no event tells
                    await anyio.sleep(_LOOK_S)
            tasks.cancel_scope.cancel()
        peak = max(weights)
        run = await client.get_run(sent.run.id)
        check(
            run.result is not None and run.result.text.strip() == expected.strip(), "a wrong answer"
        )
        with anyio.move_on_after(20):
            while process.memory_info().rss > 1.1 * before:  # noqa: ASYNC110 - no event tells
                await anyio.sleep(0.2)
        after = process.memory_info().rss
    size, mib = len(expected), 1024**2
    name = f"an answer of {size / 1e6:g} MB"
    return [
        Figure(
            name=f"{name}: longest time of another call",
            value=max(waited_s) * 1000,
            bound=100,
            unit="ms",
            places=0,
            detail=f"of {len(waited_s)}",
        ),
        Figure(
            name=f"{name}: memory of agentd at most / the answer",
            value=max(peak - before, size // 100) / size,
            bound=4,
            detail=f"{before / mib:.0f} MiB before, {peak / mib:.0f} MiB at most",
        ),
        Figure(
            name=f"{name}: memory of agentd afterwards / before",
            value=after / before,
            bound=1.1,
            detail=f"{after / mib:.0f} MiB",
        ),
    ]


async def _is_busy(client: Client) -> bool:
    counts = (await client.status()).queue_counts
    return bool(counts.queued_count or counts.running_count)
