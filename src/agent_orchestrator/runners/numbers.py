"""Checks of numbers that agents report. Impossible ones are left out."""

from typing import Any, Final

from agent_orchestrator.fields import MAX_INTEGER

MAX_COST_USD: Final = 1e9
"""Maximum cost of a run in US dollars. A greater one is an error of the agent."""

MAX_EXIT_CODE: Final = 2**31 - 1


def whole(value: Any, maximum: int = MAX_INTEGER) -> int | None:
    """Return an integer from 0 to the maximum; None for anything else."""
    return value if type(value) is int and 0 <= value <= maximum else None


def amount(value: Any, maximum: float) -> float | None:
    """Return a number from 0 to the maximum; None for anything else."""
    return float(value) if type(value) in (int, float) and 0 <= value <= maximum else None


def exit_code(value: Any) -> int | None:
    """Return an exit code, negative for a signal; None for anything else."""
    return value if type(value) is int and abs(value) <= MAX_EXIT_CODE else None
