"""A session's events as widgets."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from attrs import define, evolve, field
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event
from agentctl.document import Block, Markdown, Text
from agentctl.document import Entry as DocumentEntry
from agentctl.event_text import RUN_ENDS, child_id, plan_steps, text_of, tool_outcome, tool_text
from agentctl.screens.entries import AgentText, Card, Entry
from agentctl.screens.text import bounded, content_of, line, shortened, styled
from agentctl.transcript import Transcript as Document

MAX_ENTRIES: Final = 1_000
"""Maximum number of entries on the screen. Beyond it, the oldest are removed."""

_SHOWN_LINES: Final = 25
"""Maximum lines of an entry that is unfolded at first."""

_OMITTED: Final = frozenset(
    {
        EventType.SESSION_CREATED,
        EventType.RUN_QUEUED,
        EventType.RUN_STARTED,
        EventType.RUN_WAITING,
        EventType.RUN_RESUMED,
        EventType.THREAD_STARTED,
        EventType.BACKEND_EVENT,
    }
)
"""Events that the state line shows, or that are of no use in a conversation."""

_TOOLS: Final = (EventType.TOOL_STARTED, EventType.TOOL_OUTPUT, EventType.TOOL_COMPLETED)
_BOXES: Final = {"completed": ("✓ ", "$success"), "in_progress": ("▸ ", "bold")}


@define
class _Run:
    """The widgets of a run that later events change."""

    pieces: dict[str, str] = field(factory=dict)
    growing: dict[str, AgentText] = field(factory=dict)
    tools: dict[str, tuple[Card, str]] = field(factory=dict)
    plan: Entry | None = None


class Builder:
    """Makes widgets of events, and updates them when later events belong to them."""

    def __init__(self) -> None:
        self._document = Document(today=datetime.now().astimezone().date(), diffs=True)
        self._runs: dict[str, _Run] = {}
        self._made: list[Entry] = []

    def build(self, events: Sequence[Event]) -> list[Entry]:
        """Return the new widgets for some events, in order."""
        changed: dict[str, tuple[_Run, Event]] = {}
        for event in events:
            run = self._runs.setdefault(event.run_id, _Run()) if event.run_id else _Run()
            item = str(event.data.get("item_id"))
            if event.event_type == EventType.AGENT_MESSAGE_DELTA:
                run.pieces[item] = run.pieces.get(item, "") + text_of(event.data)
                changed[item] = run, event
                continue
            if event.event_type == EventType.AGENT_MESSAGE:
                changed.pop(item, None)
            self._grow(changed)
            self._show(evolve(event, data=shortened(dict(event.data))), run)
            if event.event_type in RUN_ENDS and event.run_id:
                self._runs.pop(event.run_id, None)
        self._grow(changed)
        made, self._made = self._made, []
        return made

    @property
    def cost_s(self) -> float:
        """Seconds that it takes to render the messages that still grow."""
        return sum(text.cost_s for run in self._runs.values() for text in run.growing.values())

    def _grow(self, changed: dict[str, tuple[_Run, Event]]) -> None:
        """Show the pieces of messages that have come since, once for all of them."""
        for item, (run, event) in changed.items():
            if item in run.growing:
                run.growing[item].change(run.pieces[item])
            else:
                run.growing[item] = AgentText(run.pieces[item], event.seq)
                self._made.append(run.growing[item])
        changed.clear()

    def _show(self, event: Event, run: _Run) -> None:
        if event.event_type in _TOOLS:
            self._tool(event, run)
        elif event.event_type == EventType.PLAN_UPDATED:
            self._plan(event, run)
        else:
            blocks = self._document.entries(event)
            for block in blocks if event.event_type not in _OMITTED else ():
                self._block(event, run, block)

    def _block(self, event: Event, run: _Run, block: Block) -> None:
        name = event.event_type
        if not isinstance(block, DocumentEntry):
            self._made.append(Entry(content_of([block]), event.seq))
            return
        first, *rest = block.body
        if isinstance(first, Markdown):
            item = str(event.data.get("item_id"))
            run.pieces.pop(item, None)
            if (grown := run.growing.pop(item, None)) is not None:
                grown.change(first.text)
            elif first.text.strip():
                self._made.append(AgentText(first.text, event.seq))
            return
        who = block.actor if name == EventType.MESSAGE_CREATED and block.actor != "you" else ""
        mark = Content.assemble(
            styled(f"{block.mark} ", block.mark_style), (f"{line(who)}: " if who else "", "bold")
        )
        if name.startswith("child."):
            head = Content.assemble(mark, content_of([first]), ("  · enter opens it", "dim"))
            self._made.append(Card(head, seq=event.seq, session_id=child_id(event.data)))
        elif name == EventType.AGENT_REASONING:
            text = text_of(event.data).strip()
            head = Content.assemble(mark, (line(text.split("\n", 1)[0], 100), "dim italic"))
            self._made.append(Card(head, content_of([first]), seq=event.seq))
        elif name == EventType.FILE_CHANGED and rest:
            body = content_of(rest)
            is_short = body.plain.count("\n") < _SHOWN_LINES
            head = mark + content_of([first])
            self._made.append(Card(head, body, seq=event.seq, is_open=is_short))
        elif name.startswith("request."):  # how to answer it is on the screen
            self._made.append(
                Entry(mark + line(first.text if isinstance(first, Text) else str(first)), event.seq)
            )
        else:
            kind = "message" if name == EventType.MESSAGE_CREATED else ""
            self._made.append(Entry(mark + content_of(block.body), event.seq, kind))

    def _tool(self, event: Event, run: _Run) -> None:
        data, tool = event.data, text_of(event.data, "tool_id")
        card, output = run.tools.get(tool, (None, ""))
        if event.event_type == EventType.TOOL_STARTED:
            head = Content.assemble(("▸ ", "$primary"), line(tool_text(data)))
            run.tools[tool] = Card(head, seq=event.seq), ""
            self._made.append(run.tools[tool][0])
        elif event.event_type == EventType.TOOL_OUTPUT and card is not None:
            output = (output + text_of(data))[-50_000:]
            run.tools[tool] = card, output
            card.change(card.head, Content.styled(bounded(output, is_tail=True), "dim"))
        elif event.event_type == EventType.TOOL_COMPLETED:
            succeeded, status, output = tool_outcome(data)
            mark, style = ("✓ ", "$success") if succeeded else ("✗ ", "$error")
            head = Content.assemble(
                (mark, style), line(tool_text(data)), (f"  {line(status)}", style)
            )
            body = (
                Content.styled(bounded(output, is_tail=True), "dim")
                if output.strip()
                else Content()
            )
            if card is None:
                self._made.append(Card(head, body, seq=event.seq, is_open=not succeeded))
            else:
                card.change(head, body, is_open=card.is_open or not succeeded)
            run.tools.pop(tool, None)

    def _plan(self, event: Event, run: _Run) -> None:
        parts = [Content.styled("☰ plan", "$accent")]
        for text, status in plan_steps(event.data)[:50]:
            mark, style = _BOXES.get(status, ("  ", "dim"))
            parts.append(Content.assemble((mark, style), (line(text), style)))
        if run.plan is not None:  # the plan moves down with the work
            run.plan.display = False
            if run.plan.is_mounted:
                run.plan.remove()
        run.plan = Entry(Content("\n").join(parts), event.seq)
        self._made.append(run.plan)


class Transcript(VerticalScroll, can_focus=False):
    """The events of a session from some event on. It follows the newest unless scrolled back."""

    class AtStart(Message):
        """The start was reached by scrolling."""

    def __init__(self) -> None:
        super().__init__()
        self._builder = Builder()
        self._head = Entry(Content())
        self.before = 0
        """Number of the last event before the first that is shown."""

    @property
    def cost_s(self) -> float:
        """Seconds that it takes to render what still grows."""
        return self._builder.cost_s

    async def on_mount(self) -> None:
        self.anchor()
        await self.mount(self._head)

    async def show(self, events: Sequence[Event]) -> None:
        """Show the next events."""
        await self.mount_all(self._builder.build(events))
        if len(self.children) > MAX_ENTRIES and self.scroll_offset.y >= self.max_scroll_y - 1:
            old = [entry for entry in self.children[1:] if isinstance(entry, Entry)]
            old = old[: MAX_ENTRIES // 4]
            self.note_start(max(self.before, *(entry.seq for entry in old)))
            await self.remove_children(old)

    async def show_earlier(self, events: Sequence[Event], before: int) -> None:
        """Show earlier events above the others, and keep the scroll position."""
        height, top = self.virtual_size.height, self.scroll_offset.y
        await self.mount_all(Builder().build(events), after=0)
        self.note_start(before)
        self.call_after_refresh(
            lambda: self.scroll_to(y=top + self.virtual_size.height - height, animate=False)
        )

    def note_start(self, before: int) -> None:
        """Note how many events are not shown."""
        self.before = before
        text = f"▲ {before:,} earlier events: page up at the start loads them" if before else ""
        self._head.update(Content.styled(text, "dim"))
        self._head.display = before > 0

    def page(self, step: int) -> None:
        """Scroll by pages. At the start, ask for earlier events."""
        if step > 0:
            self.scroll_page_down(animate=False)
        elif self.scroll_offset.y > 0:
            self.scroll_page_up(animate=False)
        elif self.before:
            self.post_message(self.AtStart())

    def on_mouse_scroll_up(self) -> None:
        if self.scroll_offset.y <= 0 and self.before:
            self.post_message(self.AtStart())
