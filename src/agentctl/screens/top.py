"""The screen of ``agentctl top``: requests and runs, with keys to answer, cancel and open them."""

from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar, Final

import anyio
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from agent_orchestrator.domain.errors import OrchestratorError, Unreachable
from agent_orchestrator.domain.events import STATE_AFTER, EventType
from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.model import Request, Run, Session
from agent_orchestrator.operations.daemon import STATUS, DaemonStatus
from agent_orchestrator.operations.events import HEAD, StreamItem, StreamPart
from agent_orchestrator.operations.runs import CANCEL_RUN, GET_RUN, LIST_RUNS
from agent_orchestrator.operations.sessions import GET_SESSION
from agentctl.connection import DaemonConnection
from agentctl.event_text import activity_of, usage_parts
from agentctl.output import Output
from agentctl.screens.app import DaemonApp, Failed
from agentctl.screens.chat import ChatScreen
from agentctl.screens.composer import History
from agentctl.screens.question_panel import QuestionPanel
from agentctl.screens.text import bounded, line
from agentctl.times import ago, elapsed

LOAD_S: Final = 0.2
"""Seconds to collect changes before they are loaded."""

MAX_LISTED: Final = 200
"""Maximum number of runs of each state on the screen."""

MAX_FINISHED: Final = 50
"""Number of finished runs on the screen."""

CONFIRM_S: Final = 3.0
"""Maximum seconds between two presses of the key that cancel a run."""

_STYLES: Final = {
    "running": "$success",
    "waiting": "$warning",
    "queued": "dim",
    "completed": "$success dim",
    "failed": "$error",
    "canceled": "$warning dim",
}


class TopScreen(Screen[None]):
    """Loads the state again after events that may have changed it. Nothing is polled.

    :param root: show only the tree of this session.
    """

    app: "TopApp"
    AUTO_FOCUS = "OptionList"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c,ctrl+d", "quit"),
        Binding("f", "finished"),
        Binding("t", "scope"),
        Binding("c", "cancel"),
    ]

    def __init__(self, root: Session | None) -> None:
        super().__init__()
        self._root = root
        self._status: DaemonStatus | None = None
        self._is_lost = False
        self._requests: dict[str, Request] = {}
        self._runs: dict[str, Run] = {}
        self._finished: deque[Run] = deque(maxlen=MAX_FINISHED)
        self._with_finished = False
        self._doing: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._changed = anyio.Event()
        self._ended: deque[str] = deque(maxlen=MAX_FINISHED)
        self._asked_to_cancel = ("", 0.0)

    def compose(self) -> ComposeResult:
        yield Static(markup=False, id="title")
        yield OptionList(id="rows", markup=False, compact=True)
        yield QuestionPanel()
        yield Static(markup=False, id="about")
        yield Static(markup=False, id="note", classes="-empty")
        keys = "enter opens it · c cancels · f finished · t tree · q quits"
        yield Static(keys, markup=False, id="keys")

    def on_mount(self) -> None:
        self.query_one(QuestionPanel).can_focus = False
        self.query_one("#about").display = False
        self.set_interval(1.0, self._draw)
        self.run_worker(self._follow())
        self.run_worker(self._show_changes())
        self._draw()

    # --- events --------------------------------------------------------------------------

    async def _follow(self) -> None:
        def lose() -> None:
            self._is_lost = True
            self._draw()

        try:
            await self.app.connection.stream((), HEAD, self._take, retry_s=None, on_lost=lose)
        except (OrchestratorError, Unreachable) as error:
            self.app.fail(error)

    def _take(self, item: StreamPart) -> bool:
        if not isinstance(item, StreamItem):  # events may have been missed
            self._changed.set()
            return False
        event = item.event
        if event.run_id is not None and (text := activity_of(event)):
            self._doing[event.run_id] = line(text, 200)
        if event.event_type == EventType.SESSION_UPDATED:
            self.app.sessions.pop(event.session_id, None)
            self._paths.clear()
        status = STATE_AFTER.get(event.event_type)
        if event.run_id is not None and status is not None and is_terminal(status):
            self._ended.append(event.run_id)
            self._doing.pop(event.run_id, None)
        if event.event_type.startswith(("run.", "request.", "session.")):
            self._changed.set()
        return False

    async def _show_changes(self) -> None:
        while True:
            await self._changed.wait()
            await anyio.sleep(LOAD_S)
            self._changed = anyio.Event()
            await self.app.attempt(self._load())
            self._draw()

    async def _load(self) -> None:
        call = self.app.connection.call
        before = set(self._doing)
        status = await call(STATUS)
        runs: dict[str, Run] = {}
        for name in ("running", "waiting", "queued"):
            runs |= {
                run.id: run for run in (await call(LIST_RUNS, status=name, limit=MAX_LISTED)).runs
            }
        narrower = {} if self._root is None else {"root_session_id": self._root.root_session_id}
        requests = {one.id: one for one in await self.app.requests(**narrower)}
        while self._ended:
            ended = await self.app.attempt(call(GET_RUN, run_id=self._ended.popleft()))
            self._finished.extend([] if isinstance(ended, Failed) else [ended.run])
        listed: list[Run | Request] = [*runs.values(), *requests.values(), *self._finished]
        for session_id in {one.session_id for one in listed}:
            if session_id not in self._paths:
                self._paths[session_id] = await self.app.path(session_id)
        self._status, self._is_lost, self._runs, self._requests = status, False, runs, requests
        # A run that has begun since the lists were read is in the next ones.
        for name in before - runs.keys():
            self._doing.pop(name, None)

    async def _load_finished(self) -> None:
        found: list[Run] = []
        for status in ("completed", "failed", "canceled"):
            call = self.app.connection.call(
                LIST_RUNS, status=status, order="newest", limit=MAX_FINISHED
            )
            page = await self.app.attempt(call)
            found += [] if isinstance(page, Failed) else page.runs
        known = {run.id: run for run in (*found, *self._finished)}
        self._finished.extend(
            sorted(known.values(), key=lambda run: run.finished_at or run.created_at)
        )
        self._changed.set()

    # --- display -------------------------------------------------------------------------

    def _is_shown(self, session_id: str) -> bool:
        found = self.app.sessions.get(session_id)
        return self._root is None or (
            found is not None and found.root_session_id == self._root.root_session_id
        )

    def _rows(self) -> Mapping[str, Content]:
        """Return a row for each request and run, by its id."""
        now = datetime.now(UTC)
        rows: dict[str, Content | None] = {}
        for one in self._requests.values():
            whom = "? asks" if one.audience == "human" else "? asks its parent"
            rows[one.id] = self._row(
                whom, "$warning", one.session_id, line(one.text, 200), one.created_at, now
            )
        order = ("running", "waiting", "queued")
        active = sorted(self._runs.values(), key=lambda run: (order.index(run.status), run.id))
        finished = reversed(self._finished) if self._with_finished else ()
        for run in (*active, *finished):
            words = self._doing.get(run.id, "")
            if is_terminal(run.status):
                outcome = run.error.message if run.error else run.result.text if run.result else ""
                words = line(outcome, 200)
            at = run.finished_at or (run.started_at if run.status != "queued" else None)
            style = _STYLES.get(run.status, "")
            rows[run.id] = self._row(
                run.status, style, run.session_id, words, at or run.created_at, now
            )
        return {name: row for name, row in rows.items() if row is not None}

    def _row(
        self, state: str, style: str, session_id: str, words: str, at: datetime, now: datetime
    ) -> Content | None:
        if not self._is_shown(session_id):
            return None
        name = line(self._paths.get(session_id, session_id), 34)
        since = elapsed(max((now - at).total_seconds(), 0))
        return Content.assemble(
            (f"{state:9} ", style), (f"{since:>9} ", "dim"), f"{name}  ", (words, "dim")
        )

    def _draw(self) -> None:
        """Show the state. The selection stays on its row; if that is gone, nothing is selected."""
        rows = self._rows()
        listed = self.query_one(OptionList)
        selected = self._selected
        shown = [option.id for option in listed.options]
        if shown == list(rows):
            for name, row in rows.items():
                if listed.get_option(name).prompt != row:
                    listed.replace_option_prompt(name, row)
        else:
            listed.clear_options()
            listed.add_options([Option(row, id=name) for name, row in rows.items()])
            names: list[str | None] = list(rows)
            listed.highlighted = names.index(selected) if selected in names else None
        self.query_one("#title", Static).update(self._head())
        self._describe()

    def _head(self) -> Content:
        status, time = self._status, f"{datetime.now().astimezone():%H:%M:%S}"
        if status is None:
            return Content(f"connecting …  {time}")
        health = "unreachable" if self._is_lost else status.daemon_health
        style = {"ok": "$success", "unreachable": "$error"}.get(health, "$warning")
        count = {name: sum(run.status == name for run in self._runs.values()) for name in _STYLES}
        counts = (
            f"{min(count['running'], status.max_concurrency)} of {status.alive_workers} workers busy"
            f" · {count['queued']} queued · {count['waiting']} waiting · {len(self._requests)} asked"
        )
        scope = f" · only {line(self._root.title or self._root.id, 30)}" if self._root else ""
        problems = [(f"\n{line(one.message)}", "$warning") for one in status.problems[:2]]
        return Content.assemble(
            "agentd ", (health, style), f"{scope} · {counts} · {time}", *problems
        )

    @property
    def _selected(self) -> str | None:
        option = self.query_one(OptionList).highlighted_option
        return None if option is None else option.id

    def on_option_list_option_highlighted(self) -> None:
        self._describe()

    def _describe(self) -> None:
        """Show the selected request or run."""
        request = self._requests.get(self._selected or "")
        path = "" if request is None else self._paths.get(request.session_id, "")
        self.query_one(QuestionPanel).show(request, path, self._expiry(request))
        run, about = self._selected_run, self.query_one("#about", Static)
        about.display = run is not None
        if run is not None:
            about.update(self._about(run))

    def _expiry(self, request: Request | None) -> str:
        if request is None:
            return ""
        left = max((request.expires_at - datetime.now(UTC)).total_seconds(), 0)
        where = self.app.sessions.get(request.session_id)
        return f" · expires in {elapsed(left)}" + (f"\nin {line(where.cwd)}" if where else "")

    @property
    def _selected_run(self) -> Run | None:
        known = {run.id: run for run in self._finished} | self._runs
        return known.get(self._selected or "")

    def _about(self, run: Run) -> Content:
        session = self.app.sessions.get(run.session_id)
        facts = [
            f"{run.id}  {line(self._paths.get(run.session_id, ''), 200)}",
            f"{line(run.provider, 40)} {line(run.model or '', 40)}  in {line(session.cwd) if session else ''}",
            f"{run.status}, attempt {run.attempt}, created {ago(run.created_at, datetime.now(UTC))}",
        ]
        facts += [self._doing[run.id]] if run.id in self._doing else []
        facts += [f"{run.error.code}: {bounded(run.error.message[:2_000])}"] if run.error else []
        facts += [bounded(run.result.text[:2_000])] if run.result else []
        used = run.usage
        if used is not None:
            names = ("input_tokens", "cached_input_tokens", "output_tokens", "cost_usd")
            facts += usage_parts({name: getattr(used, name) for name in names})
        return Content("\n".join(facts))

    # --- actions --------------------------------------------------------------------

    def on_key(self, event: events.Key) -> None:
        """Answer the selected request by a key."""
        panel = self.query_one(QuestionPanel)
        if isinstance(self.focused, OptionList) and panel.apply_key(event):
            event.stop()
            event.prevent_default()

    def on_question_panel_decided(self, event: QuestionPanel.Decided) -> None:
        self.query_one(OptionList).focus()
        self.run_worker(self._decide(event))

    async def _decide(self, event: QuestionPanel.Decided) -> None:
        await self.app.decide(event.request, event.values)
        self._changed.set()

    async def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open the session."""
        name = event.option.id or ""
        found = self._requests.get(name) or self._selected_run
        if found is None:
            return
        call = self.app.connection.call(GET_SESSION, session_id=found.session_id)
        reply = await self.app.attempt(call)
        if not isinstance(reply, Failed):
            await self.app.push_screen(ChatScreen(reply.session, {}))

    def action_finished(self) -> None:
        """Show or hide the finished runs."""
        self._with_finished = not self._with_finished
        if self._with_finished:
            self.run_worker(self._load_finished())
        self._draw()

    def action_scope(self) -> None:
        """Show only the tree of the selected row, or everything again."""
        found = self._requests.get(self._selected or "") or self._selected_run
        self._root = (
            None if self._root or found is None else self.app.sessions.get(found.session_id)
        )
        self._changed.set()

    def action_cancel(self) -> None:
        """Cancel the selected run, if the key is pressed twice."""
        run, now = self._selected_run, anyio.current_time()
        if run is None or is_terminal(run.status):
            self.app.say("select a run that has not ended")
            return
        name, asked_at = self._asked_to_cancel
        if name == run.id and now - asked_at < CONFIRM_S:
            self._asked_to_cancel = "", 0.0
            self.run_worker(self._cancel(run))
        else:
            self._asked_to_cancel = run.id, now
            self.app.say(f"c again cancels {run.id} and its children")

    async def _cancel(self, run: Run) -> None:
        reply = await self.app.attempt(self.app.connection.call(CANCEL_RUN, run_id=run.id))
        if not isinstance(reply, Failed):
            self.app.say(f"canceled {len(reply.canceled)} runs")
        self._changed.set()

    def action_quit(self) -> None:
        self.app.stop()


class TopApp(DaemonApp):
    """The application of ``agentctl top``."""

    def __init__(self, connection: DaemonConnection, output: Output, root: Session | None) -> None:
        super().__init__(connection, output)
        self.history = History()
        self._root = root

    def on_mount(self) -> None:
        self.push_screen(TopScreen(self._root))
