"""The live display of ``agentctl top``."""

import math
from datetime import UTC, datetime
from typing import Any, Final

import anyio

from agent_orchestrator.domain.errors import OrchestratorError, Unreachable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.operations.daemon import STATUS
from agent_orchestrator.operations.events import HEAD, CaughtUp, Draining, StreamPart
from agent_orchestrator.operations.requests import LIST_REQUESTS, RESOLVE_REQUEST
from agent_orchestrator.operations.runs import LIST_RUNS
from agent_orchestrator.operations.sessions import GET_SESSION
from agentctl.connection import DaemonConnection
from agentctl.dashboard import Dashboard, KeyAnswer
from agentctl.event_text import activity_of
from agentctl.output import Output
from agentctl.paging import pages
from agentctl.screen import Screen, on_resize

REDRAW_DELAY_S: Final = 0.15
"""Seconds to collect events before the state is loaded and drawn."""

STATUS_S: Final = 5.0
"""Seconds for which the daemon's status is reused."""

MAX_LISTED: Final = 200
"""Maximum number of runs to load of each status."""


class TopScreen:
    """Loads the state again after events that may have changed it. Nothing is polled."""

    def __init__(
        self, connection: DaemonConnection, output: Output, url: str, screen: Screen
    ) -> None:
        self._connection = connection
        self._dashboard = Dashboard(url)
        self._screen = screen
        self._changed_event = anyio.Event()
        self._dirty = anyio.Event()
        self._status_at = -math.inf
        output.announcer = self._notify

    async def run(self) -> None:
        """Run the display until the user quits."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            tasks.start_soon(self._refresh)
            tasks.start_soon(self._draw)
            tasks.start_soon(self._redraw_clock)
            tasks.start_soon(on_resize, self._redraw)
            async for key in self._screen.keys():
                if key in ("q", "end") and self._dashboard.typing is None:
                    break
                self._dashboard.notice = ""
                answer = self._dashboard.handle_key(key, anyio.current_time())
                if answer is not None:
                    tasks.start_soon(self._answer, answer)
                self._redraw()
            tasks.cancel_scope.cancel()

    def _redraw(self) -> None:
        self._dirty.set()

    def _notify(self, text: str) -> None:
        self._dashboard.notice = text.removeprefix("agentctl: ")
        self._redraw()

    def _changed(self) -> None:
        self._changed_event.set()

    async def _follow(self) -> None:
        def take(item: StreamPart) -> bool:
            if isinstance(item, CaughtUp | Draining):
                self._status_at = -math.inf  # events may have been missed: reload everything
                self._changed()
                return False
            event = item.event
            if event.run_id is not None and (text := activity_of(event)):
                self._dashboard.activities[event.run_id] = text
                self._redraw()
            if event.event_type.startswith(("run.", "request.")):
                self._changed()
            elif event.event_type == EventType.SESSION_UPDATED:
                self._dashboard.sessions.pop(event.session_id, None)
                self._changed()
            return False

        def lose() -> None:
            self._dashboard.is_unreachable = True
            self._redraw()

        await self._connection.stream((), HEAD, take, retry_s=None, on_lost=lose)

    async def _refresh(self) -> None:
        while True:
            await self._changed_event.wait()
            await anyio.sleep(REDRAW_DELAY_S)
            self._changed_event = anyio.Event()
            try:
                await self._load()
            except (OrchestratorError, Unreachable) as error:
                # The stream encounters the error too. Once it is connected again, everything is reloaded.
                self._notify(str(error))
            self._redraw()

    async def _load(self) -> None:
        call, dashboard = self._connection.call, self._dashboard
        daemon = dashboard.status
        if daemon is None or anyio.current_time() - self._status_at > STATUS_S:
            daemon = await call(STATUS)
            dashboard.is_unreachable = False
            self._status_at = anyio.current_time()
        runs: list[Any] = []
        for status in ("running", "waiting", "queued"):
            runs += (await call(LIST_RUNS, status=status, limit=MAX_LISTED)).runs
        page = await pages(
            self._connection, LIST_REQUESTS, "requests", limit=None, cursor=None, status="pending"
        )
        # Assigned together, because partial results would be misleading.
        dashboard.status, dashboard.runs = daemon, list({run.id: run for run in runs}.values())
        # Requests for people come first.
        dashboard.requests = sorted(
            page.requests, key=lambda request: (request.audience != "human", request.id)
        )
        dashboard.settle()
        known = {run.id for run in dashboard.runs}
        dashboard.activities = {
            name: text for name, text in dashboard.activities.items() if name in known
        }
        in_view = {run.session_id for run in dashboard.runs[: self._screen.rows]}
        dashboard.sessions = {
            name: session for name, session in dashboard.sessions.items() if name in in_view
        }
        for session_id in in_view - dashboard.sessions.keys():
            dashboard.sessions[session_id] = (
                await call(GET_SESSION, session_id=session_id)
            ).session

    async def _answer(self, answer: KeyAnswer) -> None:
        request = answer.request
        try:
            reply = await self._connection.call(
                RESOLVE_REQUEST,
                request_id=request.id,
                decision=answer.decision,
                text=answer.text,
            )
        except (OrchestratorError, Unreachable) as error:
            self._notify(str(error))
        else:
            self._notify(f"request {request.id} is {reply.request.status}")
        self._changed()

    async def _redraw_clock(self) -> None:
        """Redraw every second to update ages. Loads nothing."""
        while True:
            await anyio.sleep(1)
            self._redraw()

    async def _draw(self) -> None:
        while True:
            style, rows = self._screen.style, self._screen.rows
            moment, now = datetime.now(UTC), anyio.current_time()
            self._screen.draw(self._dashboard.render(style, rows, moment, now))
            await anyio.sleep(REDRAW_DELAY_S / 2)
            await self._dirty.wait()
            self._dirty = anyio.Event()


async def show(connection: DaemonConnection, output: Output, url: str, screen: Screen) -> None:
    """Run the display until the user quits."""
    await TopScreen(connection, output, url, screen).run()
