"""Paths as agents compare them: as text."""

import os
from collections.abc import Iterator


def upwards(path: str) -> Iterator[str]:
    """Yield a path and all its parents."""
    while True:
        yield path
        above = os.path.dirname(path)  # noqa: PTH120 - as text, which is what agents compare
        if above in (path, ""):
            return
        path = above
