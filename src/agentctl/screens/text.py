"""Converts texts and blocks to content of widgets, of bounded size and without control characters or markup."""

import io
import time
from collections.abc import Iterable
from typing import Any, Final

from markdown_it import MarkdownIt
from rich.console import Console
from rich.markdown import Markdown as RichMarkdown
from rich.text import Text as RichText
from rich.theme import Theme
from textual.content import Content
from textual.css.styles import RulesMap
from textual.strip import Strip
from textual.style import Style
from textual.visual import RenderOptions, Visual

from agentctl.document import Block, Diff, Markdown, Text, diff_text
from agentctl.terminal import clean, one_line, revealed
from agentctl.times import counted

MAX_CHARACTERS: Final = 20_000
"""Maximum characters of one text on the screen. The log has all of it."""

MAX_LINES: Final = 400
"""Maximum lines of one text on the screen."""

MAX_VALUE: Final = 200_000
"""Maximum characters of a value in an event that are processed. A value in the log may have 24 MiB."""

MAX_TABLE_MARKS: Final = 2_000
"""Maximum ``|`` of a text that is shown as Markdown: each may be the cell of a table."""

_THEME: Final = Theme({"markdown.code": "bold cyan", "markdown.code_block": "cyan"})
"""Rich gives code a black background, which does not suit a light terminal."""

_SIGNS: Final = {"+": "$success", "-": "$error", "@": "dim"}


def line(text: str, columns: int = 500) -> str:
    """Return a text as one harmless line."""
    shown = one_line(text[: 4 * columns])
    return shown if len(shown) <= columns else shown[: columns - 1] + "…"


def bounded(text: str, *, is_tail: bool = False) -> str:
    """Return a harmless text with at most :data:`MAX_LINES` lines, and a note about the rest.

    :param is_tail: keep the end instead of the start.
    """
    kept = text[-MAX_CHARACTERS:] if is_tail else text[:MAX_CHARACTERS]
    lines = clean(kept.rstrip()).expandtabs(4).split("\n")
    hidden_lines = max(len(lines) - MAX_LINES, 0)
    if not hidden_lines and len(kept) == len(text):
        return "\n".join(lines)
    hidden = [counted(len(text) - len(kept), "character"), counted(hidden_lines, "line")]
    note = f"… {' and '.join(part for part in hidden if not part.startswith('0 '))} more in the log"
    shown = lines[hidden_lines:] if is_tail else lines[:MAX_LINES]
    return "\n".join([note, *shown] if is_tail else [*shown, note])


def shortened(value: Any) -> Any:
    """Return a JSON value with long texts and lists cut. A long diff is left out."""
    match value:
        case str() if len(value) > MAX_VALUE:
            return value[:MAX_VALUE]
        case list() | tuple():
            return [shortened(one) for one in value[:MAX_LINES]]
        case dict():
            return {
                name: shortened(one)
                for name, one in value.items()
                if name != "diff" or len(str(one)) <= MAX_VALUE
            }
    return value


def styled(text: str, style: str) -> Content:
    """Return a text in a style of rich."""
    return Content.from_rich_text(RichText(text.expandtabs(4), style))


def content_of(blocks: Iterable[Block], *, is_whole: bool = False) -> Content:
    """Return blocks of text as content.

    :param is_whole: show all of it, with control characters made visible, because it is a question.
    """
    parts: list[Content] = []
    for block in blocks:
        match block:
            case Diff():
                shown = block.lines if is_whole else block.lines[:MAX_LINES]
                for one in shown:
                    parts.append(Content.styled(diff_text(one, block), _SIGNS.get(one.sign, "")))  # noqa: PERF401
                parts += [Content.styled(block.end, "dim")] if block.end else []
            case Text():
                parts.append(
                    styled(block.harmless if is_whole else bounded(block.text), block.style)
                )
            case Markdown() | str():
                text = block.text if isinstance(block, Markdown) else block
                parts.append(Content(revealed(text) if is_whole else bounded(text)))
    return Content("\n").join(parts)


class MarkdownVisual(Visual):
    """Markdown as one piece of content. A widget for each block would make long conversations slow.

    :param is_plain: show the text unformatted.
    """

    def __init__(self, text: str, *, is_plain: bool = False) -> None:
        self.text = bounded(text)
        is_plain = is_plain or self.text.count("|") > MAX_TABLE_MARKS
        started = time.thread_time()
        self._markdown = None if is_plain else RichMarkdown("", "ansi_dark", hyperlinks=False)
        if self._markdown is not None:
            # HTML of an agent is text. A program that shows none would hide it.
            parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
            self._markdown.parsed = parser.parse(self.text)
        self.cost_s = time.thread_time() - started
        """Processor time that it took, in seconds. Some texts take longer than their size suggests."""
        self._width = 0
        self._content = Content(self.text)

    def at(self, width: int) -> Content:
        """Return the content for a width."""
        if self._markdown is not None and width != self._width:
            started = time.thread_time()
            console = Console(
                file=io.StringIO(),
                width=max(width, 8),
                force_terminal=True,
                theme=_THEME,
                _environ={},
            )
            lines = console.render_lines(self._markdown, pad=False)
            text = RichText("\n").join(
                RichText.assemble(*((part.text, part.style or "") for part in one)) for one in lines
            )
            text.rstrip()
            self._width, self._content = width, Content.from_rich_text(text, console)
            self.cost_s += time.thread_time() - started
        return self._content

    def get_optimal_width(self, rules: RulesMap, container_width: int) -> int:  # noqa: ARG002
        return container_width

    def get_height(self, rules: RulesMap, width: int) -> int:
        return self.at(width).get_height(rules, width)

    def render_strips(
        self, width: int, height: int | None, style: Style, options: RenderOptions
    ) -> list[Strip]:
        return self.at(width).render_strips(width, height, style, options)
