"""A measured figure and its bound, and the table of them."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from attrs import field, frozen


class WrongResult(Exception):
    """The measured code gave a wrong result."""


def check(condition: object, problem: str) -> None:
    """Raise :class:`WrongResult` if the condition does not hold."""
    if not condition:
        raise WrongResult(problem)


@frozen
class Effort:
    """The number of repetitions: ``full`` for published figures, ``quick`` for an estimate, ``smoke`` for a test."""

    name: Literal["full", "quick", "smoke"]

    def of(self, *, full: int, quick: int, smoke: int) -> int:
        """Return the number for this effort."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.name]


@frozen(kw_only=True)
class Figure:
    """A measured number and its bound.

    :param unit: the unit of both; empty for a ratio.
    :param limit: whether the bound is a maximum or a minimum.
    :param detail: the numbers that a ratio was computed from.
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
        """Return the cells of its row."""
        unit = f" {self.unit}" if self.unit else ""
        return (
            self.name,
            f"{self.value:.{self.places}f}{unit}",
            f"{self.limit} {self.bound:g}{unit}",
            "ok" if self.met else "MISSED",
            self.detail,
        )


HEADINGS: Final = ("figure", "measured", "bound", "", "from")


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as an aligned Markdown table."""
    rows = [HEADINGS, *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def warm(results: Sequence[float]) -> float:
    """Return the median without the first result, which warms up. Return a single result as it is."""
    return statistics.median(results[1:] or results)


def medians(times: int, *measured: Callable[[], float]) -> list[float]:
    """Call the functions in turn, each ``times`` times, and return the median of each.

    Calling them in turn spreads other load on the machine over all of them.
    """
    taken: list[list[float]] = [[] for _ in measured]
    for _ in range(times):
        for results, measure in zip(taken, measured, strict=True):
            results.append(measure())
    return [statistics.median(results) for results in taken]
