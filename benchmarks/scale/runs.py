"""Measure what stays in memory after many runs."""

from functools import partial
from pathlib import Path
from typing import Final

import anyio
import psutil

from agent_orchestrator import connect
from benchmarks import function_agents
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import Server, agentd
from benchmarks.turns import check_log, turn

_SESSIONS: Final = 16


def measure(effort: Effort, directory: Path) -> list[Figure]:
    runs = effort.of(full=10_000, quick=4_000, smoke=32)
    warm_up = effort.of(full=1_000, quick=1_000, smoke=16)
    with agentd(directory, config=function_agents.ECHO) as daemon:
        return [anyio.run(partial(_growth, daemon, runs, warm_up))]


async def _growth(daemon: Server, runs: int, warm_up: int) -> Figure:
    process, mib = psutil.Process(daemon.pid), 2**20
    async with connect(daemon.url) as client:
        sessions = [(await client.create_session()).id for _ in range(_SESSIONS)]

        async def several(session_id: str, count: int) -> None:
            for number in range(count):
                text = f"message {number}"
                _, answer = await turn(client, session_id, text)
                check(text in answer, f"the answer is {answer!r}")

        async def all_run(count: int) -> tuple[int, int, int]:
            async with anyio.create_task_group() as tasks:
                for session_id in sessions:
                    tasks.start_soon(several, session_id, count // _SESSIONS)
            return process.memory_info().rss, process.num_fds(), process.num_threads()

        before, *counts_before = await all_run(warm_up)
        after, *counts = await all_run(runs)
        check(
            all(one <= earlier + 5 for one, earlier in zip(counts, counts_before, strict=True)),
            f"{counts} descriptors and threads after {counts_before}",
        )
        each = warm_up // _SESSIONS + runs // _SESSIONS
        await check_log(client, sessions[0], each)
    return Figure(
        name=f"memory of agentd that {runs:,} runs of a function add",
        value=max(0.1, (after - before) / mib),
        bound=10,
        unit="MiB",
        places=1,
        detail=f"{before / mib:.0f} MiB after the first {warm_up:,}; as many descriptors and threads",
    )
