"""The session tree: reading its pages, and drawing it."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, TypeVar

from attrs import evolve

from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Run
from agent_orchestrator.operations.sessions import GET_TREE, SessionTree, TreePage
from agentctl.connection import DaemonConnection
from agentctl.tables import Cell, Column, table
from agentctl.terminal import Style, one_line
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


def tree_table(tree: SessionTree, style: Style, now: datetime) -> list[str]:
    """Return the lines of a tree, one per session.

    A session's status is that of its active run, or else of its last run.
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
            _state(branch, style),
            one_line(branch.session.provider or "(default)"),
            str(len(branch.runs) if branch.runs_count is None else branch.runs_count),
            ago(_since(branch), now),
            one_line(branch.session.title or ""),
        ]
        for drawn, branch in _drawn(tree, style)
    ]
    return table(columns, rows, style)


async def tree_pages(
    connection: DaemonConnection, session_id: str, limit: int | None, cursor: str | None
) -> TreePage:
    """Return one page of a tree if a limit or cursor is given, else the whole tree as one page."""
    if limit is not None or cursor is not None:
        limits = {} if limit is None else {"limit": limit}
        page: TreePage = await connection.call(
            GET_TREE, session_id=session_id, cursor=cursor, **limits
        )
        return page
    tree: TreePage = await connection.call(GET_TREE, session_id=session_id)
    while tree.next_cursor is not None:
        page = await connection.call(GET_TREE, session_id=session_id, cursor=tree.next_cursor)
        tree = evolve(_joined(tree, page), next_cursor=page.next_cursor)
    return tree


Branch = TypeVar("Branch", bound=SessionTree)


def _joined(tree: Branch, page: SessionTree) -> Branch:
    """Return a tree with the next page added."""
    children = [*tree.children]
    for child in page.children:
        if child.repeated and children:  # it continues the last child
            children[-1] = _joined(children[-1], child)
        else:
            children.append(child)
    return evolve(tree, children=tuple(children))


def _drawn(tree: SessionTree, style: Style) -> Iterator[tuple[str, SessionTree]]:
    """Yield the sessions of a tree, parents first, with the drawn lines in front of them."""
    fork, last = style.symbol("├─ ", "|- "), style.symbol("└─ ", "`- ")
    trunk, gap = style.symbol("│  ", "|  "), "   "

    def below(parent: SessionTree, indent: str) -> Iterator[tuple[str, SessionTree]]:
        for number, child in enumerate(parent.children, 1):
            is_last = number == len(parent.children)
            yield indent + (last if is_last else fork), child
            yield from below(child, indent + (gap if is_last else trunk))

    yield "", tree
    yield from below(tree, "")


def _latest_run(runs: Sequence[Run]) -> Run | None:
    """Return the run that determines a session's status."""
    active = (run for run in runs if run.status in (RunStatus.RUNNING, RunStatus.WAITING))
    return next(active, runs[-1] if runs else None)


def _state(branch: SessionTree, style: Style) -> Cell:
    run = _latest_run(branch.runs)
    closed = " (closed)" if branch.session.status == "closed" else ""
    if run is None:
        return Cell(f"no run{closed}", ("dim",))
    text = f"{style.symbol(*_SYMBOLS.get(run.status, ('·', '-')))} {run.status}"
    if run.error is not None:
        text += f": {one_line(run.error.code)}"
    return Cell(text + closed, STATUS_STYLES.get(run.status, ()))


def _since(branch: SessionTree) -> datetime:
    """Return the time of a session's last status change."""
    run = _latest_run(branch.runs)
    if run is None:
        return branch.session.created_at
    return run.finished_at or run.started_at or run.created_at
