"""A session's events as a readable transcript. No I/O."""

from collections.abc import Callable, Sequence
from datetime import date, datetime, tzinfo
from typing import Final

from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event
from agentctl import event_text as texts
from agentctl.diffs import Diffstat, changes_of, diff_blocks, is_done
from agentctl.document import Block, Entry, Markdown, Text
from agentctl.event_text import part, text_of
from agentctl.questions import asked, escalated, expiring, extended, resolved
from agentctl.terminal import clean, one_line
from agentctl.times import between, counted, duration

_OUTPUT_LINES: Final = 6
"""Lines shown of a tool's output. The last ones usually matter most."""

_OMITTED_EVENTS: Final = frozenset(
    {EventType.TOOL_OUTPUT, EventType.USAGE_UPDATED, EventType.AGENT_MESSAGE_DELTA}
)
"""Events whose content is shown elsewhere: output with the tool's end, usage with the run's end."""

_OUTCOMES: Final = {
    "completed": ("✓", "green"),
    "failed": ("✗", "red"),
    "canceled": ("■", "yellow"),
}


@define
class _Child:
    title: str
    """Empty if it has none. Its id is then shown in the text."""
    spawned_at: datetime | None
    """None after its first run has ended."""


@define
class _Run:
    """The state of an unfinished run."""

    provider: str = "agent"
    started_at: datetime | None = None
    messages: list[str] = field(factory=list)
    """The agent's messages. The result is usually the last one, or all of them."""
    tool: str | None = None
    """The id of the tool on the previous line."""
    plan: list[texts.Step] = field(factory=list)
    pieces: dict[str, list[str]] = field(factory=dict)
    """The pieces of incomplete messages, by item id."""
    diffstat: Diffstat = field(factory=Diffstat)


class Transcript:
    """Turns events into entries, one by one.

    :param zone: the time zone to use; None for the local one.
    :param today: the current date. A date is shown when it differs from the previous event's.
    :param diffs: show the lines of changed files, not only their numbers.
    """

    def __init__(
        self, *, zone: tzinfo | None = None, today: date | None = None, diffs: bool = False
    ) -> None:
        self._zone = zone
        self._day = today
        self._diffs = diffs
        self._runs: dict[str, _Run] = {}
        self._children: dict[str, _Child] = {}
        self._shown_message: str | None = None
        """The id of the last message that was shown."""
        self._renderers: dict[str, Callable[[Event, _Run], list[Block]]] = {
            EventType.MESSAGE_CREATED: self._message,
            EventType.USER_MESSAGE: self._said,
            EventType.AGENT_MESSAGE: self._agent_message,
            EventType.AGENT_REASONING: self._reasoning,
            EventType.SUBAGENT_MESSAGE: self._subagent_message,
            EventType.TOOL_STARTED: self._tool_started,
            EventType.TOOL_COMPLETED: self._tool_completed,
            EventType.FILE_CHANGED: self._files,
            EventType.PLAN_UPDATED: self._plan,
            EventType.RUN_COMPLETED: self._ended,
            EventType.RUN_FAILED: self._ended,
            EventType.RUN_CANCELED: self._ended,
            EventType.RUN_ERROR: self._problem,
            EventType.CHILD_SPAWNED: self._child_spawned,
            EventType.CHILD_FINISHED: self._child_finished,
            EventType.REQUEST_CREATED: self._asked,
            EventType.REQUEST_UPDATED: self._asked,
            EventType.REQUEST_EXPIRING: self._asked,
            EventType.REQUEST_EXTENDED: self._extended,
            EventType.REQUEST_RESOLVED: self._resolved,
        }

    def entries(self, event: Event) -> list[Block]:
        """Return the entries for an event; none if it is shown elsewhere."""
        run = self._run_of(event)
        if event.event_type in _OMITTED_EVENTS:
            return []
        entries = self._renderers.get(event.event_type, self._other)(event, run)
        if event.event_type not in (EventType.TOOL_STARTED, EventType.TOOL_COMPLETED):
            run.tool = None
        if event.event_type in texts.RUN_ENDS and event.run_id:
            self._runs.pop(event.run_id, None)
        return entries

    def partial(self, run_id: str) -> str:
        """Return the beginning of an agent's message that is not complete yet."""
        run = self._runs.get(run_id)
        return "".join(next(reversed(run.pieces.values()))) if run and run.pieces else ""

    def _run_of(self, event: Event) -> _Run:
        if event.run_id is None:
            return _Run()
        run = self._runs.setdefault(event.run_id, _Run())
        if provider := event.data.get("provider"):
            run.provider = one_line(str(provider))
        if event.event_type == EventType.RUN_STARTED:
            run.started_at = event.created_at
        if event.event_type == EventType.AGENT_MESSAGE_DELTA:
            item = str(event.data.get("item_id"))
            run.pieces.setdefault(item, []).append(text_of(event.data))
        return run

    def _entry(
        self, event: Event, actor: str, mark: str, mark_style: str, *body: Block
    ) -> list[Block]:
        """Return an entry, after a line with the date if that has changed."""
        entry = Entry(event.created_at, actor, mark, mark_style, body, self._zone)
        if entry.day == self._day:
            return [entry]
        self._day = entry.day
        return [Text(f"── {entry.day:%A %d %B %Y} ──", "dim"), entry]

    # --- messages and children --------------------------------------------------------------

    def _message(self, event: Event, _: _Run) -> list[Block]:
        data = event.data
        self._shown_message = data.get("message_id")
        child = self._children.get(str(part(data, "source").get("session_id")))
        more = ["" if child else texts.origin(data), texts.image_count(data.get("images"))]
        return self._entry(
            event,
            (child and child.title) or texts.author(data),
            "›",
            "cyan",
            Text(text_of(data), "bold"),
            *(Text(line, "dim") for line in more if line),
        )

    def _said(self, event: Event, run: _Run) -> list[Block]:
        at = text_of(event.data, "recorded_at")
        place = f"in {run.provider} itself" + (f", {at}" if at else "")
        return self._entry(
            event, "user", "›", "cyan", Text(text_of(event.data), "bold"), Text(place, "dim")
        )

    def _child_spawned(self, event: Event, _: _Run) -> list[Block]:
        spawner = self._runs.get(str(event.data.get("parent_run_id")))
        title = one_line(text_of(event.data, "title"))
        self._children[text_of(event.data, "session_id")] = _Child(title, event.created_at)
        actor = spawner.provider if spawner else ""
        return self._entry(event, actor, "↳", "magenta", Text(texts.spawned(event.data), fit=True))

    def _child_finished(self, event: Event, _: _Run) -> list[Block]:
        child = self._children.get(text_of(event.data, "session_id"))
        title = child.title if child else ""
        status, failure, outcome = texts.child_outcome(event.data)
        mark, style = _OUTCOMES.get(status, ("·", "dim"))
        text = status if title else f"{texts.child_id(event.data)} {status}"
        if child is not None and child.spawned_at is not None:
            text += f" after {duration((event.created_at - child.spawned_at).total_seconds())}"
            child.spawned_at = None
        # The child's message usually has the whole outcome and is shown just before.
        is_shown = self._shown_message == event.data.get("message_id")
        return self._entry(
            event,
            title or "child",
            mark,
            f"bold {style}",
            Text(f"{text}: {failure}" if failure else text, style),
            *_end_of("" if is_shown else outcome),
        )

    # --- requests ---------------------------------------------------------------------------

    def _asker(self, event: Event) -> str:
        """Return the name of the asking agent, of this session or a child."""
        session_id = text_of(event.data, "session_id")
        if session_id in ("", event.session_id):
            run = self._runs.get(text_of(event.data, "run_id"))
            return run.provider if run else "agent"
        child = self._children.get(session_id)
        return (child and child.title) or "child"

    def _asked(self, event: Event, _: _Run) -> list[Block]:
        wordings = {EventType.REQUEST_CREATED: asked, EventType.REQUEST_EXPIRING: expiring}
        text, more = wordings.get(event.event_type, escalated)(event.data)  # type: ignore[call-overload]
        return self._entry(
            event,
            self._asker(event),
            "?",
            "bold yellow",
            Text(text, "bold yellow", reveal=True),
            *(Text(line, "dim") for line in more),
        )

    def _extended(self, event: Event, _: _Run) -> list[Block]:
        return self._entry(event, self._asker(event), "", "", extended(event.data))

    def _resolved(self, event: Event, _: _Run) -> list[Block]:
        granted, text = resolved(event.data)
        mark, style = ("✓", "green") if granted else ("✗", "red")
        return self._entry(event, self._asker(event), mark, f"bold {style}", Text(text, style))

    # --- work -------------------------------------------------------------------------------

    def _agent_message(self, event: Event, run: _Run) -> list[Block]:
        text = text_of(event.data)
        run.messages.append(text)
        run.pieces.pop(str(event.data.get("item_id")), None)
        return self._entry(event, run.provider, "", "", Markdown(text))

    def _reasoning(self, event: Event, run: _Run) -> list[Block]:
        return self._entry(event, run.provider, "…", "", Text(text_of(event.data), "dim"))

    def _subagent_message(self, event: Event, run: _Run) -> list[Block]:
        return self._entry(event, run.provider, "»", "", Text(text_of(event.data), "dim"))

    def _tool_started(self, event: Event, run: _Run) -> list[Block]:
        run.tool = str(event.data.get("tool_id"))
        return self._entry(
            event, run.provider, "▸", "blue", Text(texts.tool_text(event.data), fit=True)
        )

    def _tool_completed(self, event: Event, run: _Run) -> list[Block]:
        succeeded, text, output = texts.tool_outcome(event.data)
        if run.tool != str(event.data.get("tool_id")):
            text = f"{one_line(texts.tool_text(event.data))}  {text}"
        run.tool = None
        mark, style = ("✓", "green") if succeeded else ("✗", "red")
        return self._entry(event, run.provider, mark, style, Text(text, fit=True), *_end_of(output))

    def _files(self, event: Event, run: _Run) -> list[Block]:
        changes, done = changes_of(event.data), is_done(event.data)
        if done:
            run.diffstat.note(changes)
        body: Sequence[Block] = texts.file_changes(event.data)
        if self._diffs and done and any(change.diff for change in changes):
            body = diff_blocks(changes)
        return self._entry(event, run.provider, "✎", "magenta" if done else "red", *body)

    def _plan(self, event: Event, run: _Run) -> list[Block]:
        steps = texts.plan_steps(event.data)
        text, run.plan = texts.plan_text(steps, run.plan), steps
        return self._entry(event, run.provider, "☰", "yellow", text)

    def _problem(self, event: Event, run: _Run) -> list[Block]:
        text = text_of(event.data, "message") or "a problem"
        return self._entry(event, run.provider, "!", "yellow", Text(text, "yellow"))

    def _ended(self, event: Event, run: _Run) -> list[Block]:
        data, status = event.data, event.event_type.rpartition(".")[2]
        blocks: list[Block] = []
        for pieces in run.pieces.values():
            blocks += self._entry(event, run.provider, "", "", Markdown("".join(pieces)))
        result = str(part(data, "result").get("text") or "")
        # Agents join and trim what they said.
        said = [text.split() for text in (*run.messages[-1:], "\n".join(run.messages))]
        if result and result.split() not in said:
            blocks += self._entry(event, run.provider, "", "", Markdown(result))
        # The net change, if the run was followed from its start.
        if run.started_at is not None and (changed := str(run.diffstat)):
            blocks += self._entry(event, run.provider, "✎", "magenta", changed)
        time_taken = between(run.started_at, event.created_at)
        text = status + (f" after {duration(time_taken.total_seconds())}" if time_taken else "")
        if status == "completed":
            text = " · ".join([text, *texts.usage_parts(part(data, "usage"))])
        elif status == "failed":
            error = part(data, "error")
            text += f": {error.get('code', 'unknown')}: {error.get('message', '')}"
        elif data.get("reason"):
            text += f": {data['reason']}"
        mark, style = _OUTCOMES[status]
        return blocks + self._entry(event, run.provider, mark, f"bold {style}", Text(text, style))

    def _other(self, event: Event, run: _Run) -> list[Block]:
        actor = "" if event.run_id is None else run.provider
        return self._entry(event, actor, "·", "dim", Text(texts.sentence(event), "dim", fit=True))


def _end_of(output: str) -> list[Block]:
    """Return the last lines of an output."""
    text = clean(output.rstrip())
    hidden = text.count("\n") + 1 - _OUTPUT_LINES
    lines = text.rsplit("\n", _OUTPUT_LINES if hidden > 1 else -1) if text else []
    if hidden > 1:
        lines[0] = f"… {counted(hidden, 'line')} before"
    return [Text(line.rstrip(), "dim", fit=True) for line in lines]
