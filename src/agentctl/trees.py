"""A session and its descendants, drawn as a tree. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Run
from agent_orchestrator.operations import SessionTree
from agentctl.tables import Cell, Column, table
from agentctl.terminal import Look, one_line
from agentctl.times import ago
from agentctl.views import STATUS_STYLES

_SYMBOLS: Final[dict[str, tuple[str, str]]] = {
    "queued": ("·", "-"),
    "running": ("●", "*"),
    "waiting": ("?", "?"),
    "completed": ("✓", "+"),
    "failed": ("✗", "x"),
    "canceled": ("■", "x"),
}


def tree_table(tree: SessionTree, look: Look, now: datetime) -> list[str]:
    """Return the lines that show a tree: a line for each session, under its parent.

    A session stands as its last run does, or as the one its agent works on.
    """
    columns = [
        Column("SESSION"),
        Column("STATUS"),
        Column("PROVIDER"),
        Column("RUNS", align="right", optional=True),
        Column("SINCE", align="right"),
        Column("TITLE", flexible=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            Cell(drawn + branch.session.id),
            _state(branch, look),
            one_line(branch.session.provider or "(default)"),
            str(len(branch.runs)),
            ago(_since(branch), now),
            one_line(branch.session.title or ""),
        ]
        for drawn, branch in _drawn(tree, look)
    ]
    return table(columns, rows, look)


def _drawn(tree: SessionTree, look: Look) -> Iterator[tuple[str, SessionTree]]:
    """Return each session of a tree, parents first, with the lines drawn before it."""
    fork, last = look.symbol("├─ ", "|- "), look.symbol("└─ ", "`- ")
    trunk, gap = look.symbol("│  ", "|  "), "   "

    def below(parent: SessionTree, indent: str) -> Iterator[tuple[str, SessionTree]]:
        for place, child in enumerate(parent.children, 1):
            is_last = place == len(parent.children)
            yield indent + (last if is_last else fork), child
            yield from below(child, indent + (gap if is_last else trunk))

    yield "", tree
    yield from below(tree, "")


def _telling(runs: Sequence[Run]) -> Run | None:
    """Return the run that tells how a session stands."""
    active = (run for run in runs if run.status in (RunStatus.RUNNING, RunStatus.WAITING))
    return next(active, runs[-1] if runs else None)


def _state(branch: SessionTree, look: Look) -> Cell:
    run = _telling(branch.runs)
    closed = " (closed)" if branch.session.status == "closed" else ""
    if run is None:
        return Cell(f"no run{closed}", ("dim",))
    text = f"{look.symbol(*_SYMBOLS.get(run.status, ('·', '-')))} {run.status}"
    if run.error is not None:
        text += f": {one_line(run.error.code)}"
    return Cell(text + closed, STATUS_STYLES.get(run.status, ()))


def _since(branch: SessionTree) -> datetime:
    """Return when a session came to stand as it does."""
    run = _telling(branch.runs)
    if run is None:
        return branch.session.created_at
    return run.finished_at or run.started_at or run.created_at
