"""Measure an agent's process with a supervisor, compared with the same program without one."""

import os
import subprocess
import time
from functools import partial
from pathlib import Path
from statistics import median

import anyio

from agent_orchestrator.hosts.linux.supervisor import fork_server
from agent_orchestrator.runners.process import agent_process
from benchmarks.figures import Effort, Figure, check

PROGRAM = ["/bin/sh", "-c", "echo done"]


def measure(effort: Effort, directory: Path) -> list[Figure]:
    directory.mkdir(parents=True)
    times = effort.of(full=300, quick=100, smoke=3)
    kept, bare = anyio.run(partial(_measure, times, str(directory)))
    return [
        Figure(
            name="cost of supervising an agent's process",
            value=max((kept - bare) * 1000, 0.01),  # no more than noise is no gain
            bound=5,
            unit="ms",
            detail=f"{kept * 1000:.1f} ms - {bare * 1000:.1f} ms",
        )
    ]


async def _measure(times: int, cwd: str) -> list[float]:
    taken: tuple[list[float], list[float]] = ([], [])
    async with fork_server() as held:
        await held.prepare()
        for _ in range(times + 1):
            for results, measured in zip(taken, (_kept, _bare), strict=True):
                began = time.perf_counter()
                said = await measured(cwd)
                results.append(time.perf_counter() - began)
                check(said == b"done", f"the agent said {said!r}")
    return [median(results[1:]) for results in taken]  # the first of each warms up


async def _kept(cwd: str) -> bytes:
    async with agent_process(PROGRAM, cwd=cwd, env=os.environ) as process:
        lines = [line.data async for line in process.lines()]
        check(await process.wait() == 0, "the agent failed")
    return b"\n".join(lines)


async def _bare(cwd: str) -> bytes:
    ended = await anyio.to_thread.run_sync(
        partial(
            subprocess.run,
            PROGRAM,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            start_new_session=True,
        )
    )
    return bytes(ended.stdout).strip()
