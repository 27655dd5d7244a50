"""The state, key handling and rendering of ``agentctl top``. No I/O."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from attrs import define, field

from agent_orchestrator.domain.model import Request, Run, Session
from agent_orchestrator.operations.daemon import DaemonStatus
from agentctl.questions import expires_soon
from agentctl.tables import Cell, Column, Style, request_card, request_table, table, truncated
from agentctl.terminal import one_line
from agentctl.times import elapsed

MIN_VIEW_S: Final = 0.5
"""Seconds a request must be shown before a key answers it. It prevents answering a request that moved
under the cursor a moment ago."""

_ORDER: Final = {"running": 0, "waiting": 1, "queued": 2}
_STYLES: Final[dict[str, tuple[str, ...]]] = {
    "running": ("green",),
    "waiting": ("yellow",),
    "queued": ("dim",),
}
_HEALTH: Final = {"ok": "green", "degraded": "yellow", "draining": "yellow", "unreachable": "red"}


@define
class KeyAnswer:
    """A key's effect: the decision on a request."""

    request: Request
    decision: str
    text: str | None = None


@define
class Dashboard:
    """The displayed state.

    :param url: the daemon's URL.
    """

    url: str
    status: DaemonStatus | None = None
    is_unreachable: bool = False
    """True if the daemon cannot be reached. ``status`` is then its last status."""
    runs: Sequence[Run] = ()
    requests: Sequence[Request] = ()
    sessions: dict[str, Session] = field(factory=dict)
    activities: dict[str, str] = field(factory=dict)
    """The last activity of each run's agent, by run id."""
    notice: str = ""
    """A message for the user."""
    selected: str | None = None
    scroll: int = 0
    typing: str | None = None
    """The answer typed so far; None when not typing."""
    _in_view_at: float = 0.0
    """When the selected request was first drawn; 0 until then."""
    _read: bool = False
    """True once the whole question of the selected request was shown."""
    _page: int = 1
    """Lines to scroll per page. One line less than is shown, so that none is skipped."""

    def select(self, request_id: str | None) -> None:
        """Select a request."""
        if request_id != self.selected:
            self.selected, self.scroll, self.typing = request_id, 0, None
            self._in_view_at, self._read = 0.0, False

    def settle(self) -> None:
        """Select an existing request after the list has changed."""
        known = [request.id for request in self.requests]
        if self.selected not in known:
            self.select(known[0] if known else None)

    @property
    def selected_request(self) -> Request | None:
        """The selected request, or None."""
        return next((request for request in self.requests if request.id == self.selected), None)

    # --- keys ---------------------------------------------------------------------------------

    def handle_key(self, key: str, now: float) -> KeyAnswer | None:
        """Handle a key. Return the decision it makes, if any.

        :param now: the time in seconds, on the same clock as in :meth:`render`.
        """
        if self.typing is not None:
            return self._type(key)
        if key in ("up", "k", "down", "j"):
            self._move(-1 if key in ("up", "k") else 1)
        elif key in ("page down", " ", "page up"):
            step = -self._page if key == "page up" else self._page
            self.scroll = max(self.scroll + step, 0)
        elif key in ("a", "d", "r") and self.selected_request is not None:
            return self._decide(key, self.selected_request, now)
        return None

    def _move(self, step: int) -> None:
        known = [request.id for request in self.requests]
        if known:
            index = known.index(self.selected) if self.selected in known else 0
            self.select(known[min(max(index + step, 0), len(known) - 1)])

    def _decide(self, key: str, request: Request, now: float) -> KeyAnswer | None:
        if not self._in_view_at or now - self._in_view_at < MIN_VIEW_S:
            self.notice = "this request is new: read it first"
            return None
        if key == "d":
            return KeyAnswer(request, "deny")
        if not self._read:
            self.notice = "press space to read the rest first"
            return None
        if key == "r":
            if request.kind != "input_request":
                self.notice = "this request needs a yes or a no: press a or d"
                return None
            self.typing = ""
            return None
        if request.kind == "input_request":
            self.notice = "this request needs an answer in words: press r"
            return None
        return KeyAnswer(request, "approve")

    def _type(self, key: str) -> KeyAnswer | None:
        assert self.typing is not None
        if key == "escape":
            self.typing = None
        elif key == "erase":
            self.typing = self.typing[:-1]
        elif key == "enter" and self.typing.strip() and self.selected_request is not None:
            text, self.typing = self.typing, None
            return KeyAnswer(self.selected_request, "answer", text)
        elif len(key) == 1 and key.isprintable():
            self.typing += key
        return None

    # --- rendering ----------------------------------------------------------------------------

    def render(self, style: Style, rows: int, moment: datetime, now: float) -> list[str]:
        """Return the lines to display, at most ``rows``.

        :param moment: the current time, for ages and times of day.
        :param now: the time in seconds, on the same clock as in :meth:`handle_key`.
        """
        columns = style.columns or 100
        lines = self._head(style, moment)
        bottom = [style.paint(truncated(self._foot(style), columns), "dim")]
        if self.notice:
            bottom.insert(0, style.paint(truncated(one_line(self.notice), columns), "yellow"))
        height = rows - len(lines) - len(bottom)
        requests = self._requests(style, max(height // 2, height - len(self.runs) - 3), moment, now)
        lines += self._runs(style, height - len(requests), moment)
        lines += [""] * (height - len(lines) - len(requests) + rows - height - len(bottom))
        return [*lines, *requests, *bottom][:rows]

    def _head(self, style: Style, moment: datetime) -> list[str]:
        status, time = self.status, f"{moment.astimezone():%H:%M:%S}"
        if status is None:
            return [f"agentd at {one_line(self.url)}  {time}", ""]
        by_status = {name: sum(run.status == name for run in self.runs) for name in _ORDER}
        soon = sum(expires_soon(request, moment) for request in self.requests)
        busy = min(by_status["running"], status.max_concurrency)
        state = "unreachable" if self.is_unreachable else status.daemon_health
        health = style.paint(state, _HEALTH[state], "bold")
        dot = style.symbol(" · ", ", ")
        counts = dot.join(
            [
                f"{busy} of {status.alive_workers} workers busy",
                f"{by_status['queued']} queued",
                f"{by_status['waiting']} waiting",
                f"{len(self.requests)} asked" + (f" ({soon} expire soon)" if soon else ""),
            ]
        )
        problems = [
            style.paint(truncated(one_line(problem.message), style.columns or 100), "yellow")
            for problem in status.problems[:2]
        ]
        return [f"agentd {status.version} {health}{dot}{counts}{dot}{time}", *problems, ""]

    def _runs(self, style: Style, height: int, moment: datetime) -> list[str]:
        if height < 2:
            return []
        if self.status is None:
            return [style.paint(style.symbol("connecting …", "connecting ..."), "dim"), ""]
        ordered = sorted(self.runs, key=lambda run: (_ORDER.get(run.status, 3), run.id))
        more = len(ordered) - (height - 2)
        shown = ordered if more <= 0 else ordered[: max(height - 3, 0)]
        columns = [
            Column("RUN"),
            Column("STATUS"),
            Column("PROVIDER", optional=True),
            Column("FOR", align="right"),
            Column("SESSION", flexible=True),
            Column("DOING", flexible=True),
        ]
        rows: list[list[str | Cell]] = [
            [
                run.id,
                Cell(run.status, _STYLES.get(run.status, ())),
                one_line(run.provider),
                _since(run, moment),
                self._name(run.session_id),
                one_line(self.activities.get(run.id, "")),
            ]
            for run in shown
        ]
        lines = table(columns, rows, style) or [style.paint("no active or queued runs", "dim")]
        if more > 0:
            lines.append(style.paint(f"and {len(ordered) - len(shown)} more", "dim"))
        return [*lines, ""]

    def _name(self, session_id: str) -> str:
        session = self.sessions.get(session_id)
        return one_line(session.title) if session is not None and session.title else session_id

    def _requests(self, style: Style, height: int, moment: datetime, now: float) -> list[str]:
        if not self.requests or height < 4:
            return []
        lines = request_table(self.requests, style, moment)
        index = next(
            (n for n, request in enumerate(self.requests) if request.id == self.selected), 0
        )
        listed = max(min(len(self.requests), height // 3), 1)
        first = max(min(index - listed // 2, len(self.requests) - listed), 0)
        marker, body = style.paint(style.symbol("▸", ">"), "yellow", "bold"), lines[1:]
        head = [f"{marker if n == index else ' '} {body[n]}" for n in range(first, first + listed)]
        chosen = self.selected_request
        if chosen is None:
            return [*head, ""]
        question, about = _question(chosen, style, moment)
        card = [f"  {line}" for line in [*question, "", *about]]
        space = height - len(head) - 2
        self.scroll = min(self.scroll, max(len(card) - space, 0))
        visible = card[self.scroll : self.scroll + space]
        self._in_view_at = self._in_view_at or now
        self._page = max(space - 1, 1)
        if self.scroll + space >= len(question):
            self._read = True
        remaining = len(card) - self.scroll - len(visible)
        tail = style.paint(f"  {remaining} more lines: space", "yellow") if remaining > 0 else ""
        return [*head, "", *visible, tail]

    def _foot(self, style: Style) -> str:
        if self.typing is not None:
            return f"answer (enter sends, escape does not): {self.typing}_"
        dot = style.symbol(" · ", ", ")
        keys = ["q quits"]
        chosen = self.selected_request
        if chosen is not None:
            answer = "r answers" if chosen.kind == "input_request" else "a approves"
            keys = ["up and down choose", answer, "d denies", *keys]
        return dot.join(keys)


def _question(request: Request, style: Style, moment: datetime) -> tuple[list[str], list[str]]:
    """Return the lines with a request's question, and the lines about its origin."""
    narrow = Style(style.colour, style.unicode, (style.columns or 100) - 2)
    card = request_card(request, narrow, moment)
    end = card.index("")
    return card[end + 1 :], card[:end]


def _since(run: Run, moment: datetime) -> str:
    began = run.started_at if run.status != "queued" and run.started_at else run.created_at
    return elapsed(max((moment - began).total_seconds(), 0.0))
