"""The order in which the processes of a run take the tests."""

import os
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

T = TypeVar("T")


def processes() -> int:
    """Return how many processes run the tests together, as pytest-xdist says to each."""
    return int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def long_first(
    items: Sequence[T], count: int, module: Callable[[T], str], is_long: Callable[[str], bool]
) -> list[T]:
    """Order tests so that each process begins with long modules and ends with short ones.

    Each process gets one of ``count`` equal parts of the tests, in order. One that has done its part takes tests from
    the ends of others. If long tests were there, the last would run alone, while the other processes had nothing to do.

    :param module: returns the module of a test. The tests of one are next to each other, and stay so.
    """
    found = [(name, list(tests)) for name, tests in groupby(items, module)]
    parts: list[list[T]] = [[] for _ in range(count)]
    for name, tests in found:
        if is_long(name):
            min(parts, key=len).extend(tests)
    short = [test for name, tests in found if not is_long(name) for test in tests]
    for number, part in enumerate(parts):
        size = (len(items) - sum(map(len, parts[:number]))) // (count - number)
        room = max(size - len(part), 0)
        part.extend(short[:room])
        del short[:room]
    return [test for part in parts for test in part] + short
