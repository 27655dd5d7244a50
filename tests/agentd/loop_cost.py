"""Processor time of single steps of the event loop, during which nobody else is served."""

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from attrs import define


@define
class LoopCost:
    """The cost of the event loop's steps.

    :param longest_s: processor time of the longest step, in seconds, without other processes' time.
    :param total_s: processor time of all steps.
    """

    longest_s: float = 0.0
    total_s: float = 0.0

    def reset(self) -> None:
        """Begin again."""
        self.longest_s = self.total_s = 0.0


@contextmanager
def loop_cost() -> Iterator[LoopCost]:
    """Measure every step of the event loops of this thread until the scope is left.

    The garbage collector is off, so that garbage of earlier tests is not part of a step. (To collect that first
    would take most of the time of a test.)
    """
    cost = LoopCost()
    run = asyncio.Handle._run

    def measured(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        took = time.thread_time() - began
        cost.longest_s = max(cost.longest_s, took)
        cost.total_s += took

    gc.disable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", measured)
        try:
            yield cost
        finally:
            gc.enable()
