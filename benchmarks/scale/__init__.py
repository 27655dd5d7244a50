"""Measure how cost grows with readers, sessions, runs, requests, events and the size of an answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from benchmarks.figures import Effort, Figure
from benchmarks.scale import answers, beyond, lists, many_readers, runs

Benchmark: TypeAlias = Callable[[Effort, Path], list[Figure]]

PARTS: Final[dict[str, Benchmark]] = {
    "scale.readers": many_readers.measure,
    "scale.idle": many_readers.measure_idle,
    "scale.lists": lists.measure,
    "scale.answer": answers.measure,
    "scale.runs": runs.measure,
    "scale.beyond": beyond.measure,
}
"""The parts of ``scale``, which also has ``readers`` and ``queued``."""
