"""A measured figure and its bound, and the table of them."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from attrs import field, frozen


class WrongResult(Exception):
    """What was measured did not do its work."""


def check(condition: object, problem: str) -> None:
    """Refuse to go on with a measurement of something that does not work.

    :raises WrongResult: if the condition does not hold.
    """
    if not condition:
        raise WrongResult(problem)


@frozen
class Effort:
    """How much is measured: enough to trust, to get an idea, or only to see that it works."""

    name: Literal["full", "quick", "smoke"]

    def of(self, *, full: int, quick: int, smoke: int) -> int:
        """Return the count of this effort."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.name]


@frozen(kw_only=True)
class Figure:
    """One number and what it must be.

    :param unit: of the number and its bound; nothing for a ratio.
    :param limit: whether the bound is the most or the least it may be.
    :param detail: what a ratio was made of.
    """

    name: str
    value: float
    bound: float
    unit: str = ""
    limit: Literal["at most", "at least"] = "at most"
    detail: str = ""
    places: int = field(default=2)

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.limit == "at most" else self.value >= self.bound

    def row(self) -> tuple[str, str, str, str, str]:
        """Return its cells in the table."""
        unit = f" {self.unit}" if self.unit else ""
        return (
            self.name,
            f"{self.value:.{self.places}f}{unit}",
            f"{self.limit} {self.bound:g}{unit}",
            "ok" if self.met else "MISSED",
            self.detail,
        )


HEADINGS: Final = ("figure", "measured", "bound", "", "made of")


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as an aligned Markdown table, without what is empty in all of them."""
    rows = [HEADINGS, *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def warm(results: Sequence[float]) -> float:
    """Return the median of all but the first, which warms up; of one, that."""
    return statistics.median(results[1:] or results)


def medians(times: int, *measured: Callable[[], float]) -> list[float]:
    """Call each in turn, all of them so many times, and return the median of each.

    In turn, because what else the machine does then falls on all of them.
    """
    taken: list[list[float]] = [[] for _ in measured]
    for _ in range(times):
        for results, measure in zip(taken, measured, strict=True):
            results.append(measure())
    return [statistics.median(results) for results in taken]
