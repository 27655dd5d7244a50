"""Follows a session on a terminal: its events, its agent's activity, and answers by keys."""

import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TextIO

import anyio

from agent_orchestrator.domain.errors import AlreadyResolved, OrchestratorError, Unreachable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event, Request
from agent_orchestrator.operations.requests import GET_REQUEST, LIST_REQUESTS, RESOLVE_REQUEST
from agent_orchestrator.operations.sessions import GET_SESSION
from agentctl.connection import DaemonConnection
from agentctl.diffs import objects
from agentctl.document import Block, Text, plain_lines
from agentctl.event_text import activity_of, text_of
from agentctl.output import Output
from agentctl.questions import (
    Choice,
    answer_names,
    choices_of,
    decided,
    detail_blocks,
    needs_person,
    question_blocks,
)
from agentctl.terminal import clean, is_terminal, one_line, put, put_pieces, takes_keys
from agentctl.times import elapsed
from agentctl.transcript import Transcript

if TYPE_CHECKING:
    from agentctl.console import Screen

_TICK_S: Final = 0.1
"""Seconds between updates of the time that is shown."""

SHOW_ALL: Final = "v"
LEAVE_OPEN: Final = "o"
_ENTER, _ERASE, _CLEAR, _ESCAPE = "\r\n", "\x7f\b", "\x15", "\x1b"


class Display:
    """Shows blocks on a stream, and on a terminal a live part below them.

    :param stream: standard output or standard error.
    """

    def __init__(self, output: Output, stream: TextIO) -> None:
        self._output = output
        self._stream = stream
        self.screen: Screen | None = None
        if stream is sys.stdout:
            self.screen = output.screen
        elif output.interactive:
            self.screen = output.screen_of(stream)
        self.transcript = Transcript(
            today=datetime.now().astimezone().date(), diffs=self.screen is not None
        )
        is_dumb = self.screen is not None and self.screen.is_dumb
        is_shown = self.screen is not None and is_terminal(stream)
        self._is_live = is_shown and not is_dumb
        self.is_line_by_line = is_shown and is_dumb
        """True on a terminal where nothing can be redrawn: a person answers with lines, not with keys."""
        self._activity = self._partial = self._menu = ""
        self._started = anyio.current_time()

    @property
    def takes_keys(self) -> bool:
        """True if a person can answer here."""
        return (self._is_live or self.is_line_by_line) and takes_keys()

    def show(self, blocks: Iterable[Block]) -> None:
        """Show blocks above the live part."""
        if self.screen is not None:
            self.screen.show(blocks)
        else:
            lines = (f"{line}\n" for line in plain_lines(blocks))
            put_pieces(partial(put, self._stream), lines)

    def event(self, event: Event) -> None:
        """Show an event and the agent's activity."""
        self.show(self.transcript.entries(event))
        self.note_activity(event, said="working")

    def note_activity(self, event: Event, *, said: str = "") -> None:
        """Show the agent's activity according to an event.

        :param said: the text to show for an agent's message, if the message itself is shown elsewhere.
        """
        is_said = event.event_type in (EventType.AGENT_MESSAGE, EventType.AGENT_REASONING)
        if text := (is_said and said) or activity_of(event):
            self._activity = one_line(text)
        self._partial = self.transcript.partial(event.run_id or "")

    @asynccontextmanager
    async def live(self, activity: str) -> AsyncIterator[None]:
        """Keep the live part while the body runs.

        :param activity: the first text of the last line; empty for none.
        """
        if self.screen is None or not self._is_live:
            yield
            return
        self._activity = activity
        before, self._output.announcer = (
            self._output.announcer,
            lambda text: self.show([Text(text, "dim")]),
        )
        try:
            async with anyio.create_task_group() as tasks:
                with self.screen.live(), Keyboard(enabled=self.takes_keys):
                    tasks.start_soon(self._tick)
                    yield
                    tasks.cancel_scope.cancel()
        finally:
            self._output.announcer = before

    async def _tick(self) -> None:
        while True:
            self.redraw()
            await anyio.sleep(_TICK_S)

    def set_menu(self, text: str) -> None:
        """Show the menu of keys; empty for none."""
        if self.is_line_by_line:
            self.show([Text(text)] if text else [])
            return
        self._menu = text
        self.redraw()

    def redraw(self) -> None:
        if self.screen is None:
            return
        passed = elapsed(anyio.current_time() - self._started)
        self.screen.set_live(
            clean(self._partial),
            self._menu,
            spinner=f"{passed}  {self._activity}" if self._activity else "",
        )


class Keyboard:
    """Reads keys of the terminal, without echo, also after the process was suspended.

    :param signals: whether Ctrl-C interrupts; otherwise it is a key.
    """

    def __init__(self, *, enabled: bool = True, signals: bool = True) -> None:
        self._enabled = enabled
        self._signals = signals
        self._before: list[Any] | None = None
        self._resumed: Any = signal.SIG_DFL

    def __enter__(self) -> Self:
        if self._enabled:
            self._before = termios.tcgetattr(sys.stdin.fileno())
            self._take()
            # While this process was suspended, the shell has changed the terminal's mode.
            self._resumed = signal.signal(signal.SIGCONT, lambda *_: takes_keys() and self._take())
        return self

    def _take(self) -> None:
        descriptor = sys.stdin.fileno()
        tty.setcbreak(descriptor)
        if not self._signals:
            mode = termios.tcgetattr(descriptor)
            mode[3] &= ~termios.ISIG
            termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGCONT, self._resumed)
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)

    @staticmethod
    def forget_typed() -> None:
        """Discard what was typed before a question appeared."""
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)

    @staticmethod
    async def read() -> str:
        """Return typed characters. The escape sequence of a key, such as an arrow, is returned whole."""
        descriptor = sys.stdin.fileno()
        await anyio.wait_readable(descriptor)
        typed = os.read(descriptor, 1024).decode(errors="replace")
        if not typed:
            raise EOFError
        return typed


class Answers:
    """Lets a person answer the requests of a session and its descendants by keys.

    :param with_text: also show the question's text. A transcript shows it already.
    """

    def __init__(
        self,
        connection: DaemonConnection,
        display: Display,
        session_id: str,
        *,
        with_text: bool = False,
    ) -> None:
        self._connection = connection
        self._display = display
        self._session_id = session_id
        self._with_text = with_text
        self._waiting: dict[str, None] = {}
        self._left_open: set[str] = set()
        self._changed = anyio.Event()
        self._asking: tuple[str, anyio.CancelScope] | None = None

    def note(self, event: Event) -> None:
        """Note an event: a question was opened or closed."""
        data, request_id = event.data, text_of(event.data, "id")
        if event.event_type in (EventType.REQUEST_CREATED, EventType.REQUEST_UPDATED):
            if data.get("audience") == "human" and request_id not in self._left_open:
                self._waiting[request_id] = None
                self._changed.set()
        elif event.event_type == EventType.REQUEST_RESOLVED:
            self._waiting.pop(request_id, None)
            if self._asking is not None and self._asking[0] == request_id:
                self._asking[1].cancel()

    async def run(self) -> None:
        """Ask for an answer to each request, one after the other, forever."""
        if not self._display.takes_keys:
            return
        for request in await self._open_requests():
            self._waiting.setdefault(request.id)
        while True:
            while not self._waiting:
                await self._changed.wait()
                self._changed = anyio.Event()
            request_id = next(iter(self._waiting))
            with anyio.CancelScope() as scope:
                self._asking = request_id, scope
                try:
                    await self._ask(request_id)
                except EOFError:  # the terminal is gone
                    return
                except (OrchestratorError, Unreachable) as error:
                    self._say(f"{error}; see `agentctl request show {request_id}`", "yellow")
            self._asking = None
            self._display.set_menu("")
            self._waiting.pop(request_id, None)

    def _say(self, text: str, style: str) -> None:
        self._display.show([Text(text, style)])

    async def _open_requests(self) -> Sequence[Request]:
        call = self._connection.call
        try:
            session = (await call(GET_SESSION, session_id=self._session_id)).session
            root = session.root_session_id
            return (await call(LIST_REQUESTS, status="pending", root_session_id=root)).requests
        except (OrchestratorError, Unreachable):
            return ()  # an agent may not see its root; new requests are noticed all the same

    async def _path(self, session_id: str) -> list[str] | None:
        """Return the titles on the path from the watched session to this one; None if it is no descendant."""
        path: list[str] = []
        while session_id != self._session_id:
            session = (await self._connection.call(GET_SESSION, session_id=session_id)).session
            path.insert(0, one_line(session.title or session.id))
            if session.parent_session_id is None:
                return None
            session_id = session.parent_session_id
        return path

    async def _ask(self, request_id: str) -> None:
        request = (await self._connection.call(GET_REQUEST, request_id=request_id)).request
        if not needs_person(request) or (path := await self._path(request.session_id)) is None:
            return
        blocks: list[Block] = [Text(" › ".join(path), "bold")] if path else []
        if self._with_text:
            blocks += question_blocks(request)
        elif request.detail:
            blocks += detail_blocks(request.detail)
        self._display.show(blocks)
        Keyboard.forget_typed()
        answer = await self._choice(request)
        if answer is None:
            self._left_open.add(request_id)
            self._say(f"left open; answer it with agentctl request show {request_id}", "dim")
            return
        try:
            await self._connection.call(RESOLVE_REQUEST, request_id=request_id, **answer)
        except AlreadyResolved:
            found = (await self._connection.call(GET_REQUEST, request_id=request_id)).request
            self._say(f"too late: {decided(found)}", "yellow")

    async def _choice(self, request: Request) -> Mapping[str, Any] | None:
        """Return the fields of the decision; None to leave the request open."""
        questions = objects((request.detail or {}).get("questions"))
        if request.kind == "input_request" and len(questions) > 1:
            return await self._several(questions)
        choices = choices_of(request)
        while True:
            keys = [
                *(f"{one.key} {one.label}" for one in choices),
                f"{SHOW_ALL} show all",
                f"{LEAVE_OPEN} leave open",
            ]
            self._display.set_menu(" · ".join(keys))
            key = (await Keyboard.read()).strip(" \r\n")
            if key in (LEAVE_OPEN, _ESCAPE):
                return None
            if key == SHOW_ALL:
                self._display.show(question_blocks(request, folded=False))
            chosen = next((one for one in choices if one.key == key), None)
            if chosen is not None and (fields := await self._completed(chosen)) is not None:
                return fields

    async def _completed(self, choice: Choice) -> dict[str, Any] | None:
        """Return the fields of a choice, after asking for its text or confirmation; None to choose again."""
        fields: dict[str, Any] = {"decision": choice.decision, "option": choice.option}
        if choice.needs_yes is not None:
            question = (
                f"This allows {one_line(choice.needs_yes or choice.label)}. Type yes to allow it"
            )
            if (await self._line(question) or "").strip() != "yes":
                return None
        if choice.needs_text:
            if not (text := await self._line(choice.label)):
                return None
            fields["text"] = text
        return fields

    async def _several(self, questions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Return the answers to several questions of one request, as a JSON object by their names."""
        from agentctl.output import compact

        answers: dict[str, str] = {}
        for name, question in zip(answer_names(questions), questions, strict=True):
            labels = [text_of(choice, "label") for choice in objects(question.get("choices"))][:9]
            numbered = " · ".join(
                f"{number} {one_line(label)}" for number, label in enumerate(labels, 1)
            )
            prompt = one_line(text_of(question)) + (f" ({numbered})" if labels else "")
            if (text := await self._line(prompt)) is None:
                return None
            is_number = text.isdecimal() and 0 < int(text) <= len(labels)
            answers[name] = labels[int(text) - 1] if is_number else text
        return {"decision": "answer", "text": compact(answers)}

    async def _line(self, prompt: str) -> str | None:
        """Return a line of input; None after Escape, or, in line mode, for an empty line."""
        if self._display.is_line_by_line:
            self._display.set_menu(f"{prompt} (an empty line does not send)")
            return (await Keyboard.read()).strip() or None
        text = ""
        while True:
            self._display.set_menu(f"{prompt} (Enter sends, Escape does not): {text}▏")
            typed = await Keyboard.read()
            if typed == _ESCAPE:
                return None
            if typed.startswith(_ESCAPE):
                continue
            for character in typed:
                if character in _ENTER and text.strip():
                    return text
                if character in _ERASE:
                    text = text[:-1]
                elif character == _CLEAR:
                    text = ""
                elif character.isprintable():
                    text += character


async def ask_person(question: str, keys: str) -> str:
    """Return one of these keys, typed by a person. Ctrl-C counts as the first."""
    with Keyboard(signals=False):
        Keyboard.forget_typed()
        put(sys.stderr, question)
        while True:
            key = await Keyboard.read()
            if key == "\x03":
                key = keys[0]
            if key in keys:
                put(sys.stderr, f"{key}\n")
                return key


@contextmanager
def note_still_running(output: Output, run_id: str) -> Iterator[None]:
    """When the body is interrupted, print that the run continues and how to cancel it."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        output.announce(f"agentctl: the run continues; end it with `agentctl run cancel {run_id}`")
        raise
