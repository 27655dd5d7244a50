"""A session's events as a readable transcript. No I/O."""

import re
from collections.abc import Callable, Iterable
from datetime import date, datetime, tzinfo
from itertools import chain
from typing import Final

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event
from agentctl.diffstat import changes_of, is_done
from agentctl.event_text import (
    RUN_ENDS,
    author,
    child_id,
    child_outcome,
    file_changes,
    image_count,
    origin,
    part,
    plan_steps,
    plan_text,
    sentence,
    spawned,
    text_of,
    tool_outcome,
    tool_text,
    usage_parts,
)
from agentctl.questions import asked, escalated, expiring, extended, resolved
from agentctl.terminal import Style, clean, lines_of, one_line, truncated, width
from agentctl.times import counted, duration, local
from agentctl.transcript_state import ChildState, RunState

_ACTOR_COLUMNS: Final = 9
_TEXT_COLUMN: Final = 8 + 2 + _ACTOR_COLUMNS + 2 + 2
_OUTPUT_LINES: Final = 6
"""Lines shown of a tool's output. The last ones usually matter most."""

_OMITTED_EVENTS: Final = frozenset({EventType.TOOL_OUTPUT, EventType.USAGE_UPDATED})
"""Events whose content is shown elsewhere: output with the tool's end, usage with the run's end."""


class Transcript:
    """Renders events one by one.

    :param zone: the time zone to use; None for the local one.
    :param streaming: show a message in pieces as it arrives, instead of when it is complete.
    :param today: the current date. A date is shown when it differs from the previous event's.
    """

    def __init__(
        self,
        style: Style,
        *,
        zone: tzinfo | None = None,
        streaming: bool = False,
        today: date | None = None,
    ) -> None:
        self._style = style
        self._zone = zone
        self._streaming = streaming
        self._day = today
        self._runs: dict[str, RunState] = {}
        self._children: dict[str, ChildState] = {}
        self._shown_message: str | None = None
        """The id of the last message that was shown."""
        self._open: str | None = None
        """The id of the message whose line is still open."""
        self._column = 0

    def render(self, event: Event) -> str:
        """Return the text to write for an event: whole lines, or a piece of one."""
        if event.event_type == EventType.AGENT_MESSAGE_DELTA:
            return self._piece(event, self._run_of(event))
        if event.event_type in _OMITTED_EVENTS:
            self._run_of(event)
            return ""
        before = self._close(event)
        if before is None:
            return self._finish_message(event, self._run_of(event))
        return before + "".join(line + "\n" for line in self.lines(event))

    def lines(self, event: Event) -> Iterable[str]:
        """Return the lines of an event, when not streaming. There can be very many.

        Consume them before the next event is rendered.
        """
        run = self._run_of(event)
        if event.event_type == EventType.AGENT_MESSAGE_DELTA:
            self._piece(event, run)
            return ()
        if event.event_type in _OMITTED_EVENTS:
            return ()
        lines = self._renderer(event)(event, run)
        if event.event_type not in (EventType.TOOL_STARTED, EventType.TOOL_COMPLETED):
            run.tool = None
        if event.event_type in RUN_ENDS and event.run_id:
            self._runs.pop(event.run_id, None)
        return lines

    def _renderer(self, event: Event) -> Callable[[Event, RunState], Iterable[str]]:
        renderers: dict[str, Callable[[Event, RunState], Iterable[str]]] = {
            EventType.MESSAGE_CREATED: self._message,
            EventType.AGENT_MESSAGE: self._agent_message,
            EventType.AGENT_REASONING: self._reasoning,
            EventType.SUBAGENT_MESSAGE: self._subagent_message,
            EventType.TOOL_STARTED: self._tool_started,
            EventType.TOOL_COMPLETED: self._tool_completed,
            EventType.FILE_CHANGED: self._files,
            EventType.PLAN_UPDATED: self._plan,
            EventType.RUN_COMPLETED: self._completed,
            EventType.RUN_FAILED: self._failed,
            EventType.RUN_CANCELED: self._canceled,
            EventType.RUN_ERROR: self._problem,
            EventType.CHILD_SPAWNED: self._child_spawned,
            EventType.CHILD_FINISHED: self._child_finished,
            EventType.REQUEST_CREATED: self._asked,
            EventType.REQUEST_UPDATED: self._asked,
            EventType.REQUEST_EXPIRING: self._asked,
            EventType.REQUEST_EXTENDED: self._extended,
            EventType.REQUEST_RESOLVED: self._resolved,
        }
        return renderers.get(event.event_type, self._render_other)

    def _run_of(self, event: Event) -> RunState:
        if event.run_id is None:
            return RunState()
        run = self._runs.setdefault(event.run_id, RunState())
        if provider := event.data.get("provider"):
            run.provider = one_line(str(provider))
        if event.event_type == EventType.RUN_STARTED:
            run.started_at = event.created_at
        return run

    # --- lines ------------------------------------------------------------------------------

    def _head(self, at: datetime, actor: str, symbol: str, styles: tuple[str, ...]) -> str:
        style = self._style
        actor = truncated(actor, _ACTOR_COLUMNS, ellipsis=style.symbol("…", "."))
        pad = " " * (_ACTOR_COLUMNS - width(actor))
        time = style.paint(local(at, self._zone).strftime("%H:%M:%S"), "dim")
        return f"{time}  {style.paint(actor, 'bold')}{pad}  {style.paint(symbol, *styles) or ' '} "

    def _lines(
        self,
        event: Event,
        actor: str,
        text: str,
        *,
        symbol: str = "",
        symbol_styles: tuple[str, ...] = (),
        styles: tuple[str, ...] = (),
        more: list[str] | None = None,
    ) -> Iterable[str]:
        """Return a text with its head and further lines, after a date line if the date changed."""
        rest = lines_of(clean(text), self._room)
        first = next(rest)
        head = self._head(event.created_at, actor, symbol, symbol_styles)
        indent = " " * _TEXT_COLUMN
        paint = self._style.paint
        return chain(
            self._new_day(event.created_at),
            [(head + paint(first, *styles)).rstrip()],
            ((indent + paint(line, *styles)).rstrip() for line in rest),
            ((indent + paint(line, "dim")).rstrip() for line in more or ()),
        )

    @property
    def _room(self) -> int | None:
        return None if self._style.columns is None else self._style.columns - _TEXT_COLUMN

    def _new_day(self, at: datetime) -> list[str]:
        day = local(at, self._zone).date()
        if day == self._day:
            return []
        self._day = day
        rule = self._style.symbol("──", "--")
        return [self._style.paint(f"{rule} {day:%A %d %B %Y} {rule}", "dim")]

    def _one_line(self, text: str, reserved: int = 0) -> str:
        """Return a text on one line that fits beside the head."""
        line = one_line(text)
        room = self._room
        return line if room is None else truncated(line, room - reserved)

    # --- streamed messages ------------------------------------------------------------------

    def _piece(self, event: Event, run: RunState) -> str:
        item, text = str(event.data.get("item_id")), text_of(event.data)
        run.pieces.setdefault(item, []).append(text)
        if not self._streaming:
            return ""
        start = ""
        if self._open != item:
            start = self._close(event) or ""
            days = "".join(line + "\n" for line in self._new_day(event.created_at))
            start += days + self._head(event.created_at, run.provider, "", ())
            self._open, self._column = item, 0
        return start + self._flow(clean(text))

    def _flow(self, text: str) -> str:
        """Return a piece of text with line breaks where words do not fit."""
        out = []
        for piece in re.findall(r"\n|[^\S\n]+|\S+", text):
            columns = width(piece)
            full = self._room is not None and self._column + columns > self._room
            if piece == "\n" or (full and self._column):
                out.append("\n" + " " * _TEXT_COLUMN)
                self._column = 0
                if piece.isspace():
                    continue
            out.append(piece)
            self._column += columns
        return "".join(out)

    def _close(self, event: Event) -> str | None:
        """Return the text that ends an open line; None if the event completes that message."""
        if self._open is None:
            return ""
        if event.event_type == EventType.AGENT_MESSAGE and event.data.get("item_id") == self._open:
            return None
        self._open = None
        return "\n"

    def _finish_message(self, event: Event, run: RunState) -> str:
        text, item = text_of(event.data), self._open
        self._open = None
        streamed = "".join(run.pieces.pop(item or "", []))
        run.messages.append(text)
        if text.startswith(streamed):
            return self._flow(clean(text[len(streamed) :])) + "\n"
        return "\n" + "".join(line + "\n" for line in self._lines(event, run.provider, text))

    # --- events -----------------------------------------------------------------------------

    def _message(self, event: Event, _: RunState) -> Iterable[str]:
        symbol = self._style.symbol("›", ">")
        self._shown_message = event.data.get("message_id")
        sender = part(event.data, "source").get("session_id")
        child = self._children.get(str(sender))
        more = ["" if child else origin(event.data), image_count(event.data.get("images"))]
        return self._lines(
            event, (child and child.title) or author(event.data), text_of(event.data),
            symbol=symbol, symbol_styles=("cyan",), styles=("bold",),
            more=[line for line in more if line] or None,
        )  # fmt: skip

    def _child_spawned(self, event: Event, _: RunState) -> Iterable[str]:
        spawner = self._runs.get(str(event.data.get("parent_run_id")))
        title = one_line(text_of(event.data, "title"))
        self._children[text_of(event.data, "session_id")] = ChildState(title, event.created_at)
        return self._lines(
            event, spawner.provider if spawner else "", self._one_line(spawned(event.data)),
            symbol=self._style.symbol("↳", "&"), symbol_styles=("magenta",),
        )  # fmt: skip

    def _child_finished(self, event: Event, _: RunState) -> Iterable[str]:
        child = self._children.get(text_of(event.data, "session_id"))
        title = child.title if child else ""
        status, failure, outcome = child_outcome(event.data)
        symbols, style = _RUN_OUTCOMES.get(status, (("·", "-"), "dim"))
        text = status if title else f"{child_id(event.data)} {status}"
        if child is not None and child.spawned_at is not None:
            time_taken = event.created_at - child.spawned_at
            text += f" after {duration(time_taken.total_seconds())}"
            child.spawned_at = None
        # The child's message usually has the whole outcome and is shown just before.
        is_shown = self._shown_message == event.data.get("message_id")
        return self._lines(
            event, title or "child", f"{text}: {failure}" if failure else text,
            symbol=self._style.symbol(*symbols), symbol_styles=(style, "bold"), styles=(style,),
            more=None if is_shown or not outcome else self._end_of(outcome),
        )  # fmt: skip

    def _asker(self, event: Event) -> str:
        """Return the name of the asking agent, of this session or a child."""
        session_id = text_of(event.data, "session_id")
        if session_id in ("", event.session_id):
            run = self._runs.get(text_of(event.data, "run_id"))
            return run.provider if run else "agent"
        child = self._children.get(session_id)
        return (child and child.title) or "child"

    def _asked(self, event: Event, _: RunState) -> Iterable[str]:
        renderers = {EventType.REQUEST_CREATED: asked, EventType.REQUEST_EXPIRING: expiring}
        text, more = renderers.get(event.event_type, escalated)(event.data)  # type: ignore[call-overload]
        return self._lines(
            event, self._asker(event), text, symbol="?",
            symbol_styles=("yellow", "bold"), styles=("yellow", "bold"), more=more,
        )  # fmt: skip

    def _extended(self, event: Event, _: RunState) -> Iterable[str]:
        return self._lines(event, self._asker(event), extended(event.data))

    def _resolved(self, event: Event, _: RunState) -> Iterable[str]:
        granted, text = resolved(event.data)
        symbol = self._style.symbol(*(("✓", "+") if granted else ("✗", "x")))
        style = "green" if granted else "red"
        return self._lines(
            event,
            self._asker(event),
            text,
            symbol=symbol,
            symbol_styles=(style, "bold"),
            styles=(style,),
        )

    def _agent_message(self, event: Event, run: RunState) -> Iterable[str]:
        text = text_of(event.data)
        run.messages.append(text)
        run.pieces.pop(str(event.data.get("item_id")), None)
        return self._lines(event, run.provider, text)

    def _reasoning(self, event: Event, run: RunState) -> Iterable[str]:
        text, symbol = text_of(event.data), self._style.symbol("…", "~")
        return self._lines(event, run.provider, text, symbol=symbol, styles=("dim",))

    def _subagent_message(self, event: Event, run: RunState) -> Iterable[str]:
        text, symbol = text_of(event.data), self._style.symbol("»", ">")
        return self._lines(event, run.provider, text, symbol=symbol, styles=("dim",))

    def _tool_started(self, event: Event, run: RunState) -> Iterable[str]:
        run.tool = str(event.data.get("tool_id"))
        symbol = self._style.symbol("▸", "*")
        text = self._one_line(tool_text(event.data))
        return self._lines(event, run.provider, text, symbol=symbol, symbol_styles=("blue",))

    def _tool_completed(self, event: Event, run: RunState) -> Iterable[str]:
        succeeded, text, output = tool_outcome(event.data)
        if run.tool != str(event.data.get("tool_id")):
            text = f"{self._one_line(tool_text(event.data), len(text) + 2)}  {text}"
        run.tool = None
        return self._lines(
            event, run.provider, text,
            symbol=self._style.symbol("✓", "+") if succeeded else self._style.symbol("✗", "x"),
            symbol_styles=("green",) if succeeded else ("red",),
            more=self._end_of(output),
        )  # fmt: skip

    def _end_of(self, output: str) -> list[str]:
        text = clean(output.rstrip())
        hidden = text.count("\n") + 1 - _OUTPUT_LINES
        lines = text.rsplit("\n", _OUTPUT_LINES if hidden > 1 else -1) if text else []
        tail = [line.expandtabs(4) for line in (lines[1:] if hidden > 1 else lines)]
        if self._room is not None:
            tail = [truncated(line, self._room) for line in tail]
        more = self._style.symbol("…", "...")
        return [f"{more} {counted(hidden, 'line')} before", *tail] if hidden > 1 else tail

    def _files(self, event: Event, run: RunState) -> Iterable[str]:
        done = is_done(event.data)
        if done:
            run.diffstat.note(changes_of(event.data))
        return self._lines(
            event, run.provider, "\n".join(file_changes(event.data)),
            symbol=self._style.symbol("✎", "%"), symbol_styles=("magenta",) if done else ("red",),
        )  # fmt: skip

    def _changed(self, event: Event, run: RunState) -> Iterable[str]:
        """Return the net change of a run, if it was followed from its start."""
        if run.started_at is None or not (text := str(run.diffstat)):
            return []
        symbol = self._style.symbol("✎", "%")
        return self._lines(event, run.provider, text, symbol=symbol, symbol_styles=("magenta",))

    def _plan(self, event: Event, run: RunState) -> Iterable[str]:
        steps = plan_steps(event.data)
        text, run.plan = plan_text(steps, run.plan), steps
        return self._lines(
            event, run.provider, text,
            symbol=self._style.symbol("☰", "="), symbol_styles=("yellow",),
        )  # fmt: skip

    def _problem(self, event: Event, run: RunState) -> Iterable[str]:
        return self._lines(
            event, run.provider, text_of(event.data, "message") or "a problem",
            symbol="!", symbol_styles=("yellow",), styles=("yellow",),
        )  # fmt: skip

    def _completed(self, event: Event, run: RunState) -> Iterable[str]:
        parts = ["completed" + run.took(event.created_at), *usage_parts(part(event.data, "usage"))]
        lines = [self._unfinished(event, run)]
        result = part(event.data, "result").get("text")
        if result and str(result) not in (*run.messages[-1:], "\n".join(run.messages)):
            lines.append(self._lines(event, run.provider, str(result)))
        symbol = self._style.symbol("✓", "+")
        lines.append(self._changed(event, run))
        return chain(*lines, self._lines(
            event, run.provider, self._joined(parts), symbol=symbol,
            symbol_styles=("green", "bold"), styles=("green",),
        ))  # fmt: skip

    def _failed(self, event: Event, run: RunState) -> Iterable[str]:
        error = part(event.data, "error")
        text = f"failed{run.took(event.created_at)}: {error.get('code', 'unknown')}: {error.get('message', '')}"
        return chain(self._unfinished(event, run), self._changed(event, run), self._lines(
            event, run.provider, text, symbol=self._style.symbol("✗", "x"),
            symbol_styles=("red", "bold"), styles=("red",),
        ))  # fmt: skip

    def _canceled(self, event: Event, run: RunState) -> Iterable[str]:
        reason = event.data.get("reason")
        text = f"canceled{run.took(event.created_at)}" + (f": {reason}" if reason else "")
        return chain(self._unfinished(event, run), self._changed(event, run), self._lines(
            event, run.provider, text, symbol=self._style.symbol("■", "x"), symbol_styles=("yellow",),
            styles=("yellow",),
        ))  # fmt: skip

    def _unfinished(self, event: Event, run: RunState) -> Iterable[str]:
        """Return the incomplete messages, unless they were streamed."""
        if self._streaming:
            return []
        texts = ["".join(pieces) for pieces in run.pieces.values()]
        return chain.from_iterable(self._lines(event, run.provider, text) for text in texts)

    def _joined(self, parts: list[str]) -> str:
        return self._style.symbol(" · ", ", ").join(parts)

    def _render_other(self, event: Event, run: RunState) -> Iterable[str]:
        """Render an event about a session, run or thread, or of an unknown type."""
        actor = "" if event.run_id is None else run.provider
        text = self._one_line(sentence(event))
        symbol = self._style.symbol("·", "-")
        return self._lines(
            event, actor, text, symbol=symbol, symbol_styles=("dim",), styles=("dim",)
        )


_RUN_OUTCOMES: Final[dict[str, tuple[tuple[str, str], str]]] = {
    "completed": (("✓", "+"), "green"),
    "failed": (("✗", "x"), "red"),
    "canceled": (("■", "x"), "yellow"),
}
