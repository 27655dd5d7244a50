"""The base of the screens: the connection, the known sessions, and failures."""

import os
import subprocess
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from attrs import frozen
from textual.app import App, SuspendNotSupported
from textual.binding import Binding
from textual.content import Content
from textual.theme import BUILTIN_THEMES

from agent_orchestrator.domain.errors import OrchestratorError, Unreachable
from agent_orchestrator.domain.model import Request, Session
from agent_orchestrator.operations.requests import LIST_REQUESTS, RESOLVE_REQUEST
from agent_orchestrator.operations.sessions import GET_SESSION
from agentctl.connection import DaemonConnection
from agentctl.daemon_process import installed_program
from agentctl.output import Output
from agentctl.paging import pages
from agentctl.screens.text import line
from agentctl.settings import CA_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from agentctl.takeover import terminal_left_to_program

T = TypeVar("T")

_MAX_DEPTH: Final = 64

CSS: Final = """
Screen { background: $background; color: $foreground; }
#title { text-style: bold; height: auto; max-height: 3; background: $background; }
#state, #keys { height: 1; color: $foreground; text-style: dim; }
#note { height: auto; max-height: 3; color: $warning; }
#note.-empty { display: none; }
Transcript { height: 1fr; scrollbar-size-vertical: 1; padding: 0 1 0 0; }
Transcript > Entry { height: auto; margin: 0 0 1 0; }
Transcript > Card { margin: 0; }
Transcript > Card:focus { background: $primary 30%; text-style: reverse; }
Transcript > .message { border-left: thick $secondary; padding-left: 1; margin: 1 0; }
#composer { height: auto; max-height: 8; border: round $primary; padding: 0 1; }
#question { height: auto; border: round $warning; padding: 0 1; }
#question:focus { border: heavy $warning; }
#question > VerticalScroll { height: auto; }
#question-text, #question-keys { height: auto; }
#question-words { border: none; height: 1; }
#rows { height: 1fr; min-height: 3; border: none; padding: 0; }
#rows, #title, #state, #keys { text-wrap: nowrap; text-overflow: ellipsis; }
#about { height: auto; max-height: 50%; border-top: solid $primary; }
"""


@frozen
class Failed:
    """A call that was refused or not answered."""

    error: Exception


class DaemonApp(App[None]):
    """An application on a connection to the daemon."""

    ENABLE_COMMAND_PALETTE = False
    CSS = CSS
    BINDINGS = [Binding("ctrl+q", "quit", show=False, priority=True)]  # noqa: RUF012

    def __init__(self, connection: DaemonConnection, output: Output) -> None:
        chosen = os.environ.get("TEXTUAL_THEME", "")
        # The terminal's own colours suit a dark and a light background.
        theme = BUILTIN_THEMES.get(chosen) or BUILTIN_THEMES["ansi-dark"]
        super().__init__(ansi_color=theme.ansi)  # NO_COLOR depends on it
        self.theme = theme.name
        self.connection = connection
        self.sessions: dict[str, Session] = {}
        self.failure: Exception | None = None
        """Why the application ended, if it failed."""
        self.is_stopped = False
        output.announcer = lambda text: self.say(text.removeprefix("agentctl: "))

    def _handle_exception(self, error: Exception) -> None:
        # Textual prints a traceback. The command reports the error as any other.
        self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the application because of an error."""
        self.failure = self.failure or error
        self.stop()

    def stop(self) -> None:
        """End the application, after the tasks that follow the daemon and update its widgets."""
        self.is_stopped = True
        self.workers.cancel_all()
        self.exit()

    def say(self, text: str) -> None:
        """Show a note to the user."""
        for screen in self.screen_stack:
            for note in screen.query("#note"):
                note.update(Content(line(text)))  # type: ignore[attr-defined]
                note.set_class(not text, "-empty")

    def leave_terminal_to(self, *command: str) -> bool:
        """Suspend the screen, run another command of agentctl on the terminal, and return when it has ended.

        Afterwards the screens continue after the last event they have.

        :return: False if the screen cannot be suspended.
        """
        settings = self.connection.output.settings
        env = {**os.environ, URL_VARIABLE: settings.url}
        env |= {TOKEN_VARIABLE: settings.token} if settings.token else {}
        env |= {CA_VARIABLE: settings.ca_file} if settings.ca_file else {}
        argv = [*installed_program("agentctl", "agentctl.main"), *command]
        try:
            with self.suspend(), terminal_left_to_program():
                if subprocess.run(argv, env=env, check=False).returncode:
                    with suppress(EOFError):
                        input("agentctl: press enter to go back to the conversation ")
        except SuspendNotSupported:
            return False
        return True

    async def attempt(self, call: Awaitable[T]) -> T | Failed:
        """Await a call. Show the error if it fails."""
        try:
            return await call
        except (OrchestratorError, Unreachable) as error:
            self.say(str(error))
            return Failed(error)

    async def session(self, session_id: str) -> Session | None:
        """Return a session; None if the user may not see it."""
        if session_id not in self.sessions:
            try:
                reply = await self.connection.call(GET_SESSION, session_id=session_id)
            except OrchestratorError:
                return None
            self.sessions[session_id] = reply.session
        return self.sessions[session_id]

    async def path(self, session_id: str) -> str:
        """Return the titles of a session and its ancestors, the root first."""
        names: list[str] = []
        found = await self.session(session_id)
        while found is not None and len(names) < _MAX_DEPTH:
            names.append(line(found.title or found.id, 60))
            parent = found.parent_session_id
            found = None if parent is None else await self.session(parent)
        return " › ".join(reversed(names)) or session_id

    async def requests(self, **narrower: Any) -> list[Request]:
        """Return the open requests that the user may answer, those for people first."""
        page = await pages(
            self.connection, LIST_REQUESTS, status="pending", resolvable=True, **narrower
        )
        return sorted(page.requests, key=lambda one: (one.audience != "human", one.id))

    async def decide(self, request: Request, values: Mapping[str, Any]) -> None:
        """Send a decision, and show the request's new status."""
        call = self.connection.call(RESOLVE_REQUEST, request_id=request.id, **values)
        reply = await self.attempt(call)
        if not isinstance(reply, Failed):
            self.say(f"request {request.id} is {reply.request.status}")


async def show(app: DaemonApp) -> None:
    """Run an application until it ends.

    :raises Exception: if it failed.
    :raises KeyboardInterrupt: if a signal ended it.
    """
    await app.run_async()
    if not app.is_stopped:
        raise KeyboardInterrupt
    if app.failure is not None:
        raise app.failure
