"""The widgets of a transcript."""

from typing import ClassVar, Final

from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.selection import Selection
from textual.widgets import Static

from agentctl.screens.text import MarkdownVisual
from agentctl.times import counted

SLOW_S: Final = 0.3
"""Maximum processor seconds to render a text as Markdown. A slower one is shown unformatted."""


class Entry(Static):
    """An entry of a transcript.

    :param seq: the number of its event; 0 for a note that is not in the log.
    """

    def __init__(self, content: Content | MarkdownVisual, seq: int = 0, classes: str = "") -> None:
        super().__init__(content, markup=False, classes=classes)
        self.auto_links = False
        self.seq = seq


class AgentText(Entry):
    """A message of an agent, which may still grow."""

    def __init__(self, text: str, seq: int) -> None:
        self.text = text
        self._is_slow = False
        self._visual_text = MarkdownVisual(text)
        super().__init__(self._visual_text, seq)

    @property
    def cost_s(self) -> float:
        """Seconds that it took to render it."""
        return self._visual_text.cost_s

    def change(self, text: str) -> None:
        """Show another text."""
        if text == self.text:
            return
        self.text = text
        self._is_slow = self._is_slow or self.cost_s > SLOW_S
        self._visual_text = MarkdownVisual(text, is_plain=self._is_slow)
        self.update(self._visual_text)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the selected text."""
        return selection.extract(self._visual_text.at(self.content_size.width).plain), "\n"


class Card(Entry, can_focus=True):
    """A line that unfolds into more.

    :param session_id: the session that it opens instead.
    """

    BINDINGS: ClassVar[list[BindingType]] = [("enter,space", "unfold", "Unfold")]

    class Opened(Message):
        """A session is to be opened."""

        def __init__(self, session_id: str) -> None:
            super().__init__()
            self.session_id = session_id

    def __init__(
        self,
        head: Content,
        body: Content | None = None,
        *,
        seq: int,
        is_open: bool = False,
        session_id: str | None = None,
    ) -> None:
        self.head, self._body, self.is_open = head, body or Content(), is_open
        self._session_id = session_id
        super().__init__(self._shown(), seq)

    def change(
        self, head: Content, body: Content | None = None, *, is_open: bool | None = None
    ) -> None:
        """Show something else."""
        self.head, self._body = head, self._body if body is None else body
        self.fold(is_open=self.is_open if is_open is None else is_open)

    def fold(self, *, is_open: bool) -> None:
        """Fold or unfold it."""
        self.is_open = is_open
        self.update(self._shown())

    def _shown(self) -> Content:
        if not self._body:
            return self.head
        if self.is_open:
            rows = [Content.assemble("  ", one) for one in self._body.split("\n")]
            return Content("\n").join([self.head, *rows])
        lines = self._body.plain.count("\n") + 1
        return Content.assemble(self.head, (f"  · {counted(lines, 'line')}", "dim"))

    def action_unfold(self) -> None:
        """Unfold or fold it, or open its session."""
        if self._session_id is not None:
            self.post_message(self.Opened(self._session_id))
        else:
            self.fold(is_open=not self.is_open)

    def on_click(self) -> None:
        """Do the same as the keys."""
        if self.screen.get_selected_text() is None:
            self.action_unfold()
