"""What an experiment came to, and the table of all of them."""

import random
import time
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import define, field, frozen

SMALL: Final = 0.1
"""A share of the whole below which only that it works is seen, and not how it bears a load."""

READY_S: Final = 2.0
"""Seconds from a start to the first answer, at the 95th percentile."""


@frozen
class Effort:
    """How much is tried.

    :param seed: decides everything that is drawn.
    :param share: of the whole, which takes about an hour; 0 is the least that still says something.
    """

    seed: int
    share: float = 1.0

    def tries(self, full: int, least: int = 1) -> int:
        """Return how often to try what the whole tries ``full`` times."""
        return max(least, round(full * self.share))

    def seconds(self, full: float, least: float) -> float:
        """Return how long to hold what the whole holds for ``full`` seconds."""
        return max(least, full * min(1.0, self.share))

    def clients(self, full: int) -> int:
        """Return how many clients send, of so many in the whole."""
        return full if self.share >= SMALL else min(full, 8)

    @property
    def rest_s(self) -> float:
        """The seconds a client rests after a message. In the whole it never does, and the processors
        have no rest either."""
        return 0.0 if self.share >= SMALL else 0.1

    def chance(self, *place: object) -> random.Random:
        """Return the source of what is drawn at a place: the same for the same seed."""
        return random.Random("/".join(str(part) for part in (self.seed, *place)))


class Skipped(Exception):
    """The experiment cannot be made here; the reason says why."""


@define
class Outcome:
    """The counts of one experiment."""

    name: str
    seed: int
    tries: int = 0
    lost: int = 0
    """Acknowledged, and not in the store."""
    doubled: int = 0
    """One request, more than one effect."""
    gaps: int = 0
    """Places where a log, or what a subscriber saw of it, is not 1, 2, 3 …"""
    orphans: int = 0
    """Agents' processes alive when none may be."""
    broken: int = 0
    """Whatever else did not hold."""
    recoveries: list[float] = field(factory=list)
    """Seconds from each start to ready."""
    acknowledged: int = 0
    """Messages that were, over all tries: what the rest is counted against."""
    problems: list[str] = field(factory=list)
    notes: list[str] = field(factory=list)
    skipped: str | None = None
    expects_loss: bool = False
    """A control: it must lose, or the experiment beside it shows nothing."""

    @property
    def passed(self) -> bool:
        if self.skipped is not None:
            return True
        if self.expects_loss:
            return self.lost > 0
        return not (self.problems or self.lost or self.doubled or self.gaps or self.orphans)

    def fault(self, kind: str, text: str, count: int = 1) -> None:
        """Count what did not hold, and say what it was."""
        setattr(self, kind, getattr(self, kind) + count)
        self.problems.append(f"{kind}: {text} [--seed {self.seed} {self.name}, try {self.tries}]")

    @property
    def verdict(self) -> str:
        if self.skipped is not None:
            return "skipped"
        if self.expects_loss:
            return "loses, as it must" if self.passed else "LOST NOTHING"
        return "ok" if self.passed else "FAILED"

    def row(self) -> tuple[str, ...]:
        """Return its cells in the table."""
        counts = (self.tries, self.acknowledged, self.lost, self.doubled, self.gaps, self.orphans)
        worst = f"{max(self.recoveries):.2f} s" if self.recoveries else ""
        if self.skipped is not None:
            return (self.name, *[""] * (len(counts) + 2), "skipped: " + self.skipped)
        note = "; ".join(self.notes)
        cells = [f"{count:,}" for count in (*counts, self.broken)]
        return (self.name, *cells, worst, f"{self.verdict}{': ' if note else ''}{note}")


HEADINGS: Final = (
    "experiment",
    "tries",
    "acknowledged",
    "lost",
    "doubled",
    "gaps",
    "orphans",
    "other",
    "worst recovery",
    "",
)


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes as an aligned Markdown table."""
    rows = [HEADINGS, *(outcome.row() for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the least of the values that at least this share of them do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(len(ordered) * share * 100) // 100) - 1))]


def until(seconds: float, pause: float = 0.005) -> Iterator[float]:
    """Go round, a moment apart, until the time is up: for what no event tells."""
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        yield end - now
        time.sleep(pause)
