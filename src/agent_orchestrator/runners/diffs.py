"""Unified diffs, without the names of files."""

from collections.abc import Iterator, Sequence
from typing import Final

_CONTEXT: Final = 3
"""Unchanged lines around a change."""


def unified(old: str, new: str) -> str:
    """Return the difference of two texts as one hunk: linear in time, however long they are. Empty if they are equal."""
    if old == new:
        return ""
    return "".join(_hunk(old.splitlines(keepends=True), new.splitlines(keepends=True)))


def _hunk(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    first = max(start - _CONTEXT, 0)
    after = min(end, _CONTEXT)
    removed, added = old[start : len(old) - end], new[start : len(new) - end]
    context = start - first
    before, now = (_range(first, len(one) + context + after) for one in (removed, added))
    yield f"@@ -{before} +{now} @@\n"
    rest = old[len(old) - end : len(old) - end + after]
    for mark, lines in ((" ", old[first:start]), ("-", removed), ("+", added), (" ", rest)):
        for line in lines:
            yield mark + line if line.endswith("\n") else f"{mark}{line}\n"


def _range(first: int, count: int) -> str:
    """Return a range of lines. An empty one has the number of the line before it."""
    return f"{first + 1 if count else first},{count}"
