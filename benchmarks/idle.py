"""Measure the start and the memory of an idle agentd."""

import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import agentd


def measure(effort: Effort, directory: Path) -> list[Figure]:
    times = effort.of(full=9, quick=5, smoke=1)
    settle_s = effort.of(full=2, quick=2, smoke=0)
    ready = []
    for number in range(times + 1):
        with agentd(directory / str(number)) as daemon:
            ready.append(daemon.ready_s)
    with agentd(directory / "idle") as daemon:
        time.sleep(settle_s)  # part of the figure: two seconds after its start
        process = psutil.Process(daemon.pid)
        # Of the fork server and its supervisor, the memory that they do not share.
        guards = process.children(recursive=True)
        check(
            len(guards) <= 2,
            "an idle agentd has other processes than its fork server and supervisor",
        )
        weight = process.memory_info().rss + sum(one.memory_full_info().pss for one in guards)
        weight /= 1024**2
    return [
        Figure(
            name="start of agentd to healthy",
            value=median(ready[1:]),  # the first warms up
            bound=0.7,
            unit="s",
            detail=f"median of {times}",
        ),
        Figure(
            name="memory of an idle agentd",
            value=weight,
            bound=90,
            unit="MiB",
            places=1,
            detail="resident, with its fork server, after 2 s",
        ),
    ]
