"""Time limits that hold on a busy machine.

A limit of wall time says nothing where other programs take the processors. Count work, use processor
time or wait for a condition instead. Where only the time itself can show what is meant, allow for
how busy the machine is.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from order import processes


def crowding() -> float:
    """Return how many times longer than alone a program waits for a processor, at least 1."""
    average, _, _, tasks, _ = Path("/proc/loadavg").read_text().split()
    runnable = int(tasks.partition("/")[0])
    processors = os.cpu_count() or 1
    # The load is that of this moment and of a minute. In the whole suite it may grow at any time.
    return max(float(processes()), float(average) / processors, runnable / processors)


def allowed(seconds: float) -> float:
    """Return a limit of so many seconds on an idle machine, stretched for the present one."""
    return seconds * crowding()


def allowed_work(seconds: float) -> float:
    """Return a limit of processor time. Where others compute too, the same work takes up to twice as long: two
    threads share one core and its caches."""
    return seconds * min(2.0, crowding())


def is_linear(work: Callable[[int], Callable[[], object]], size: int) -> bool:
    """Return True if twice the size takes at most 2.5 times the processor time, in the fastest of up to 25 tries.

    :param work: returns a function that works on so much.
    """
    half, whole = work(size), work(2 * size)
    least = [float("inf"), float("inf")]
    for _ in range(25):
        least = [min(one, _seconds(part)) for one, part in zip(least, (half, whole), strict=True)]
        if least[1] < 2.5 * least[0] + 0.01:
            return True
    return False


def _seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began
