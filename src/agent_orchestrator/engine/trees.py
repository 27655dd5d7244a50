"""The tree of a session's descendants, in pages.

A page has the next sessions in depth-first order, parents first, and repeats the ancestors of its first
session. The cursor is the id of the last session, so that the cost of a page depends on its size only,
and a new session does not move others to another page.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from attrs import define, evolve, field

from agent_orchestrator.domain.access import Action, Principal, Visibility
from agent_orchestrator.domain.errors import Forbidden, InvalidRequest, NotFound
from agent_orchestrator.domain.model import Run, RunError, RunResult, Session
from agent_orchestrator.engine.access import session_for, visibility_below
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.paging import PAGE_SIZE
from agent_orchestrator.engine.summaries import MAX_SUMMARY, shortened
from agent_orchestrator.operations.sessions import GetTree, SessionTree, TreePage
from agent_orchestrator.ports.queries import View
from agent_orchestrator.wire import strict_json

MAX_RUNS: Final = 20
"""Maximum number of runs of a session on a page."""

MAX_READ: Final = 512 * 2**20
"""Maximum bytes of results that a page reads. The cost of reading a row grows with its texts."""

_NODE_SIZE: Final = 1_500
"""Approximate number of characters of a session or a run without its texts."""

_BATCH: Final = 100
"""Maximum number of children read at once."""


async def tree(core: Core, caller: Principal, command: GetTree) -> TreePage:
    def query(view: View) -> TreePage:
        root = session_for(view, caller, Action.READ, command.session_id)
        lineage = [root]
        if command.cursor is not None:
            lineage = _lineage(view, caller, root, command.cursor)
        return _Page(view, visibility_below(view, caller), command.limit).after(lineage)

    return await core.store.read(query)


def _lineage(view: View, caller: Principal, root: Session, cursor: str) -> list[Session]:
    """Return the sessions from the root to the cursor's session.

    :raises InvalidRequest: if that is not a descendant of the root that the caller may see.
    """
    try:
        lineage = [session_for(view, caller, Action.READ, cursor)]
        while (
            lineage[-1].id != root.id and (parent_id := lineage[-1].parent_session_id) is not None
        ):
            lineage.append(session_for(view, caller, Action.READ, parent_id))
    except (NotFound, Forbidden):
        lineage = []
    if not lineage or lineage[-1].id != root.id:
        raise InvalidRequest.of({"cursor": "is not a cursor of this tree"})
    return lineage[::-1]


@define
class _Node:
    """A session on a page that is being filled."""

    session: Session
    runs: tuple[Run, ...]
    runs_count: int
    children_count: int
    shortened: tuple[str, ...]
    repeated: bool
    children: "list[_Node]" = field(factory=list)

    def to_reply(self) -> SessionTree:
        return SessionTree(
            self.session,
            self.runs,
            tuple(child.to_reply() for child in self.children),
            self.runs_count,
            self.children_count,
            self.shortened,
            self.repeated,
        )


@define
class _Page:
    """Collects the sessions of one page."""

    _view: View
    _within: Visibility
    _limit: int
    _size: int = 0
    _read: int = 0
    _childless: set[str] = field(factory=set)

    def after(self, lineage: Sequence[Session]) -> TreePage:
        """Return the page after a session.

        :param lineage: the path from the root to that session.
        """
        is_first = len(lineage) == 1
        repeated = [self._node(session, repeated=not is_first) for session in lineage]
        for parent, child in pairwise(repeated):
            parent.children.append(child)
        path = [*repeated]
        shown: list[str] = []
        more = False
        for session in self._walk(lineage):
            if shown and (len(shown) == self._limit or self._is_full):
                more = True
                break
            while path[-1].session.id != session.parent_session_id:
                path.pop()
            node = self._node(session)
            path[-1].children.append(node)
            path.append(node)
            shown.append(session.id)
        for parent, child in reversed([*pairwise(repeated)]):
            if not child.children:
                parent.children.remove(child)  # none of its descendants is on this page
        root = repeated[0].to_reply()
        return TreePage(
            root.session,
            root.runs,
            root.children,
            root.runs_count,
            root.children_count,
            root.cut,
            root.repeated,
            shown[-1] if more else None,
        )

    @property
    def _is_full(self) -> bool:
        return self._size >= PAGE_SIZE or self._read >= MAX_READ

    def _walk(self, lineage: Sequence[Session]) -> Iterator[Session]:
        """Yield the sessions after the last one of a path: its descendants, then those after it."""
        yield from self._below(lineage[-1].id)
        for parent, child in reversed([*pairwise(lineage)]):
            yield from self._below(parent.id, after=child.id)

    def _below(self, session_id: str, after: str | None = None) -> Iterator[Session]:
        """Yield the children of a session, each followed by its descendants."""
        while children := self._view.sessions(
            within=self._within, parent_session_id=session_id, after=after, limit=_BATCH
        ):
            for child in children:
                yield child
                # The caller has added the child to the page, and knows whether it has children.
                if child.id not in self._childless:
                    yield from self._below(child.id)
            after = children[-1].id
            if len(children) < _BATCH:
                return

    def _node(self, session: Session, *, repeated: bool = False) -> _Node:
        view = self._view
        room = max(1, MAX_READ - self._read)
        length = MAX_SUMMARY + 1  # one more, to see which texts are longer
        latest, size_read = view.latest_runs(session.id, limit=MAX_RUNS, cut=length, size=room)
        runs_count = len(latest)
        if len(latest) == MAX_RUNS or size_read >= room:
            runs_count = view.run_count(session.id)
            active = view.active_run(session.id)
            if active is not None and active.id not in [run.id for run in latest]:
                latest = [active, *latest[-MAX_RUNS + 1 :]]
        children_count = view.child_count(session.id, self._within)
        if not children_count:
            self._childless.add(session.id)
        runs = [_shortened_run(run) for run in latest]
        self._read += size_read
        self._size += len(strict_json.dumps(session.metadata)) + _NODE_SIZE
        self._size += sum(_NODE_SIZE + _text_length(run) for run in runs)
        cut = tuple(run.id for run, whole in zip(runs, latest, strict=True) if run != whole)
        return _Node(session, tuple(runs), runs_count, children_count, cut, repeated)


def _shortened_run(run: Run) -> Run:
    result, error = run.result, run.error
    if result is not None:
        result = RunResult(shortened(result.text))
    if error is not None:
        error = RunError(error.code, shortened(error.message))
    return evolve(run, result=result, error=error)


def _text_length(run: Run) -> int:
    return len(run.result.text if run.result else "") + len(run.error.message if run.error else "")
