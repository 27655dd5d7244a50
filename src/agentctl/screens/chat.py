"""The conversation of ``agentctl chat``."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Final

import anyio
from attrs import evolve
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from agent_orchestrator.domain.errors import CursorAhead, Gone, OrchestratorError, Unreachable
from agent_orchestrator.domain.events import STATE_AFTER, EventType
from agent_orchestrator.domain.model import Event, Run, Session
from agent_orchestrator.operations.events import LIST_EVENTS, EventPage, StreamItem, StreamPart
from agent_orchestrator.operations.messages import SEND_MESSAGE
from agent_orchestrator.operations.runs import LIST_RUNS
from agent_orchestrator.operations.sessions import CREATE_SESSION, GET_SESSION
from agentctl.connection import DaemonConnection
from agentctl.event_text import RUN_ENDS, part, plan_steps, usage_parts
from agentctl.output import Output
from agentctl.screens.app import DaemonApp, Failed
from agentctl.screens.composer import Attached, Composer, History
from agentctl.screens.entries import Card, Entry
from agentctl.screens.question_panel import QuestionPanel
from agentctl.screens.slash import run_command
from agentctl.screens.text import line
from agentctl.screens.transcript import Transcript
from agentctl.times import counted, elapsed

PAGE: Final = 200
"""Events that are loaded at once."""

FRAME_S: Final = 0.05
"""Minimum seconds between two changes of the screen by events."""

QUIT_S: Final = 2.0
"""Maximum seconds between two presses of Ctrl+C that quit."""

MODES: Final = {
    "queue": "after this turn",
    "steer": "into this turn",
    "interrupt": "instead of this turn",
}
"""The choices of ``when_busy``, with their meaning."""


class ChatScreen(Screen[None]):
    """One conversation.

    :param session: the session; None creates one with the first message.
    :param options: the fields of a new session, or of each message.
    """

    app: "ChatApp"
    AUTO_FOCUS = "Composer"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "question", priority=True),
        Binding("shift+tab", "mode", priority=True),
        Binding("ctrl+o", "fold", priority=True),
        Binding("ctrl+up", "card(-1)", priority=True),
        Binding("ctrl+down", "card(1)", priority=True),
        Binding("ctrl+x", "drop_images", priority=True),
        Binding("ctrl+c", "stop", priority=True),
        Binding("ctrl+d", "end", priority=True),
        Binding("escape", "back"),
        Binding("pageup", "page(-1)", priority=True),
        Binding("pagedown", "page(1)", priority=True),
    ]

    def __init__(self, session: Session | None, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.session = session
        self.options = dict(options)
        self.runs: dict[str, Run] = {}
        """The runs that have not ended."""
        self._mode = "queue"
        self._images: list[Attached] = []
        self._events: list[Event] = []
        self._arrived = anyio.Event()
        self._changed = anyio.Event()
        self._usage: Mapping[str, Any] = {}
        self._plan = ""
        self._is_open = False
        self._stopped_at = 0.0
        self._is_loading = False
        self._oldest_cursor = 0

    @property
    def transcript(self) -> Transcript:
        """The transcript."""
        return self.query_one(Transcript)

    def compose(self) -> ComposeResult:
        """Make the parts of the screen."""
        yield Static(markup=False, id="title")
        yield Transcript()
        yield QuestionPanel()
        yield Static(markup=False, id="note", classes="-empty")
        yield Static(markup=False, id="state")
        yield Composer(self.app.history)
        keys = (
            "enter send · ctrl+j new line · ctrl+o unfold · pgup pgdn scroll · /help · ctrl+d quit"
        )
        yield Static(keys, markup=False, id="keys")

    def on_mount(self) -> None:
        """Follow the session."""
        self.set_interval(1.0, self.show_state)
        self.run_worker(self._show_events())
        self.run_worker(self._show_changes())
        if self.session is not None:
            self.run_worker(self._follow(self.session))
        self.show_state()

    # --- events --------------------------------------------------------------------------

    async def _follow(self, session: Session) -> None:
        before, epoch = max(session.last_seq - PAGE, session.oldest_cursor), None
        self._oldest_cursor = session.oldest_cursor
        self.transcript.note_start(before if before > self._oldest_cursor else 0)
        self.app.sessions[session.id] = session
        while True:
            try:
                cursor = str(before)
                await self.app.connection.stream(
                    (session.id,), cursor, self._take, retry_s=None, epoch=epoch
                )
            except CursorAhead as error:  # the log was restored from a backup
                before = int(error.details.get("resume_cursor") or 0)
                self.app.say("the log was restored from a backup; what is above may be gone")
            except (OrchestratorError, Unreachable) as error:
                if len(self.app.screen_stack) > 2:
                    self.app.say(str(error))
                else:
                    self.app.fail(error)
                return

    async def _load(self, session: Session) -> None:
        runs: dict[str, Run] = {}
        for status in ("running", "waiting", "queued"):
            call = self.app.connection.call(LIST_RUNS, session_id=session.id, status=status)
            runs |= {run.id: run for run in (await call).runs}
        self.runs = runs
        self.show_state()
        await self._load_requests(session)

    @property
    def id_of_session(self) -> str:
        """The id of the session, which must exist."""
        assert self.session is not None
        return self.session.id

    def _take(self, item: StreamPart) -> bool:
        if isinstance(item, StreamItem):
            self._events.append(item.event)
            self._arrived.set()
        else:  # events of other sessions may have been missed
            self._changed.set()
        return False

    async def _show_events(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            arrived, self._events = self._events, []
            for event in arrived:
                await self._note(event)
            await self.transcript.show(arrived)
            self.show_state()
            # A long message takes longer to render than its next piece takes to come.
            await anyio.sleep(max(FRAME_S, 4 * self.transcript.cost_s))

    async def _note(self, event: Event) -> None:
        name, data = event.event_type, event.data
        if name == EventType.USAGE_UPDATED:
            self._usage = data
        elif name == EventType.PLAN_UPDATED:
            steps = plan_steps(data)
            self._plan = f"plan {sum(one == 'completed' for _, one in steps)}/{len(steps)}"
        elif name == EventType.SESSION_UPDATED and self.session is not None:
            reply = await self.app.attempt(
                self.app.connection.call(GET_SESSION, session_id=self.session.id)
            )
            if not isinstance(reply, Failed):
                self.session = self.app.sessions[self.session.id] = reply.session
        if name in RUN_ENDS:
            self._usage, self._plan = part(data, "usage") or self._usage, ""
        if name in STATE_AFTER or name.startswith("request."):
            self._changed.set()

    async def _show_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            if self.session is not None:
                await self.app.attempt(self._load(self.session))
            await anyio.sleep(FRAME_S)

    async def _load_requests(self, session: Session) -> None:
        root = session.root_session_id
        found = [
            one
            for one in await self.app.requests(root_session_id=root)
            if one.audience == "human" and await self._is_below(one.session_id, session.id)
        ]
        panel = self.query_one(QuestionPanel)
        had_focus = panel.has_focus_within or panel.has_focus
        shown = next((one for one in found if panel.request and one.id == panel.request.id), None)
        shown = shown or next(iter(found), None)
        is_other = shown is None or panel.request is None or shown.id != panel.request.id
        more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
        key = "" if had_focus and not is_other else " · tab answers"
        path = "" if shown is None else await self.app.path(shown.session_id)
        panel.show(shown, path, more + key)
        if is_other and had_focus:  # the next key is not for another question
            self.query_one(Composer).focus()

    async def _is_below(self, session_id: str, ancestor: str) -> bool:
        found = await self.app.session(session_id)
        while found is not None and found.id != ancestor and found.parent_session_id is not None:
            found = await self.app.session(found.parent_session_id)
        return found is not None and found.id == ancestor

    def show_state(self) -> None:
        """Show the session's title, provider and state."""
        session, options = self.session, self.options
        if session is None:
            name, where = "new session", str(options.get("cwd") or "the daemon's directory")
        else:
            name, where = session.title or session.id, session.cwd
        provider = (session and session.provider) or options.get("provider") or "default provider"
        back = "◂ escape goes back · " if len(self.app.screen_stack) > 2 else ""
        self.query_one("#title", Static).update(
            Content(f"{back}{line(name, 60)} · {line(provider, 40)} · {line(where, 200)}")
        )
        self.query_one("#state", Static).update(Content(" · ".join(self._state())))
        composer, is_busy = self.query_one(Composer), bool(self._active)
        words = f"{self._mode}: {MODES[self._mode]} (shift+tab changes)" if is_busy else ""
        composer.border_title = Content(words)
        names = ", ".join(line(name, 30) for name, _ in self._images)
        composer.border_subtitle = Content(f"with {names} (ctrl+x: without)" if names else "")

    @property
    def _active(self) -> list[Run]:
        return [run for run in self.runs.values() if run.status in ("running", "waiting")]

    def _state(self) -> list[str]:
        parts = []
        for run in self._active[:1]:
            began = run.started_at or run.created_at
            seconds = max((datetime.now(UTC) - began).total_seconds(), 0)
            word = "● working" if run.status == "running" else "? waiting for an answer"
            word = "held by the agent's own program" if run.is_held else word
            parts.append(f"{word} {elapsed(seconds)}")
        queued = sum(run.status == "queued" for run in self.runs.values())
        parts += [f"{queued} queued"] if queued else []
        session = self.session
        if session is not None and session.status == "closed":
            parts.append("closed")
        model = self.options.get("model") or next((one.model for one in self._active), None)
        model = model or (session and session.model)
        parts += [line(model, 40)] if model else []
        sandbox = (session and session.sandbox) or self.options.get("sandbox")
        parts += [sandbox] if sandbox else []
        parts += [self._plan] if self._plan else []
        return [*(parts or ["idle"]), *usage_parts(self._usage)]

    async def on_transcript_at_start(self) -> None:
        """Load earlier events."""
        if not self._is_loading and self.transcript.before:
            self._is_loading = True
            self.run_worker(self._load_earlier())

    async def _load_earlier(self) -> None:
        end = self.transcript.before
        cursor = max(end - PAGE, self._oldest_cursor)
        found: list[Event] = []
        while cursor < end:
            page = await self.app.attempt(self._page_after(cursor, end))
            if isinstance(page, Failed) or not page.events:
                break
            # Behind a gap, a page can have events that are shown already.
            found += [event for event in page.events if event.seq <= end]
            cursor = page.next_cursor
        else:
            start = max(end - PAGE, self._oldest_cursor)
            has_more = start > self._oldest_cursor
            await self.transcript.show_earlier(found, start if has_more else 0)
        self._is_loading = False

    async def _page_after(self, cursor: int, end: int) -> EventPage:
        """Return the events after a cursor, or after the oldest one if those are no longer kept."""
        call = partial(self.app.connection.call, LIST_EVENTS, session_id=self.id_of_session)
        try:
            return await call(cursor=cursor, limit=end - cursor)
        except Gone as error:
            self._oldest_cursor = int(error.details["oldest"])
            return await call(cursor=self._oldest_cursor, limit=PAGE)

    # --- actions --------------------------------------------------------------------

    async def on_composer_sent(self, event: Composer.Sent) -> None:
        """Send a message, or run a command."""
        self.app.say("")
        self.transcript.anchor()
        word = event.text.split(maxsplit=1)[0]
        if word.startswith("/") and word[1:].isalpha():
            self.run_worker(run_command(self, word[1:], event.text[len(word) :].strip()))
        else:
            images, self._images = self._images, []
            self.run_worker(self._send(event.text, images))
        self.show_state()

    async def _send(self, text: str, images: list[Attached]) -> None:
        values = dict(self.options, text=text, images=[data for _, data in images] or None)
        connection = self.app.connection
        if self.session is None:
            values.setdefault("title", line(text, 60))
            made = await self.app.attempt(connection.call(CREATE_SESSION, **values))
            if not isinstance(made, Failed):
                self.session, self.options = made.session, {}
                self.app.sessions[made.session.id] = made.session
                self.run_worker(self._follow(evolve(made.session, last_seq=0)))
                return
        else:
            values["when_busy"] = self._mode if self._active else None
            call = connection.call(SEND_MESSAGE, session_id=self.session.id, **values)
            if not isinstance(await self.app.attempt(call), Failed):
                return
        # Return the refused message to the composer.
        self._images = images + self._images
        composer = self.query_one(Composer)
        composer.text = f"{text}\n{composer.text}" if composer.text else text
        self.show_state()

    def on_composer_pasted(self, event: Composer.Pasted) -> None:
        """Attach an image."""
        if event.image is None:
            self.app.say(event.problem)
        else:
            self._images.append(event.image)
        self.show_state()

    def on_question_panel_decided(self, event: QuestionPanel.Decided) -> None:
        """Send a decision."""
        self.query_one(Composer).focus()
        self.run_worker(self._decide(event))

    async def _decide(self, event: QuestionPanel.Decided) -> None:
        await self.app.decide(event.request, event.values)
        self._changed.set()

    async def on_card_opened(self, event: Card.Opened) -> None:
        """Go into a child's conversation."""
        await self.open_session(event.session_id)

    async def open_session(self, session_id: str) -> None:
        """Show the conversation of another session, above this one."""
        call = self.app.connection.call(GET_SESSION, session_id=session_id)
        reply = await self.app.attempt(call)
        if not isinstance(reply, Failed):
            await self.app.push_screen(ChatScreen(reply.session, {}))

    async def note(self, text: str) -> None:
        """Show a note in the transcript."""
        await self.transcript.mount(Entry(Content.styled(text, "dim")))

    def on_key(self, event: events.Key) -> None:
        """Send typed characters to the composer if a card has the focus."""
        if isinstance(self.focused, Card) and event.is_printable:
            composer = self.query_one(Composer)
            composer.focus()
            composer.insert(event.character or "")

    def action_question(self) -> None:
        """Go to the question, or back to the composer."""
        panel = self.query_one(QuestionPanel)
        target = panel if panel.request and not panel.has_focus else self.query_one(Composer)
        target.focus()

    def action_mode(self) -> None:
        """Choose the next mode for messages to a working agent."""
        names = list(MODES)
        self._mode = names[(names.index(self._mode) + 1) % len(names)]
        self.show_state()

    def action_fold(self) -> None:
        """Unfold or fold all cards."""
        self._is_open = not self._is_open
        for card in self.query(Card):
            card.fold(is_open=self._is_open)

    def action_card(self, step: int) -> None:
        """Go to another card."""
        cards = [card for card in self.query(Card) if card.display]
        if not cards:
            return
        at = cards.index(self.focused) if isinstance(self.focused, Card) else len(cards)
        if (at := at + step) < len(cards):
            cards[max(at, 0)].focus()
        else:
            self.query_one(Composer).focus()

    def action_page(self, step: int) -> None:
        """Scroll the transcript, or the question that has the focus."""
        panel = self.query_one(QuestionPanel)
        if panel.has_focus:
            panel.page(step)
        else:
            self.transcript.page(step)

    def action_drop_images(self) -> None:
        """Send no images."""
        self._images = []
        self.show_state()

    def action_back(self) -> None:
        """Go back to the composer, or out of a child's conversation."""
        if not self.query_one(Composer).has_focus:
            self.query_one(Composer).focus()
        elif len(self.app.screen_stack) > 2:
            self.workers.cancel_node(self)
            self.app.pop_screen()

    def action_stop(self) -> None:
        """Copy what is selected, else clear the text, else quit if pressed twice."""
        composer, now = self.query_one(Composer), anyio.current_time()
        if selected := self.get_selected_text() or composer.selected_text:
            self.app.copy_to_clipboard(selected)
            self.app.say(f"copied {counted(len(selected), 'character')}")
        elif composer.text:
            composer.text = ""
        elif now - self._stopped_at < QUIT_S:
            self.app.stop()
        else:
            self._stopped_at = now
            going = "; the run goes on, /cancel ends it" if self.runs else ""
            self.app.say(f"ctrl+c again quits{going}")

    def action_end(self) -> None:
        """Quit, if nothing is typed."""
        if self.query_one(Composer).text:
            self.query_one(Composer).action_delete_right()
        else:
            self.app.stop()


class ChatApp(DaemonApp):
    """The application of ``agentctl chat``."""

    def __init__(
        self,
        connection: DaemonConnection,
        output: Output,
        session: Session | None,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(connection, output)
        self.history = History()
        self.chat = ChatScreen(session, options)

    def on_mount(self) -> None:
        """Show the conversation."""
        self.push_screen(self.chat)
