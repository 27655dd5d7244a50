"""Output on a terminal, with rich: tables that fit, wrapped texts, a pager and a live display.

Imported only where a terminal is, because rich takes longer to import than a short command takes.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TextIO

from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.live import Live
from rich.markdown import Markdown as RichMarkdown
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table as RichTable
from rich.text import Text as RichText

from agentctl.document import (
    Block,
    Card,
    Column,
    Diff,
    Entry,
    Markdown,
    Table,
    Text,
    cell,
    diff_text,
    plain_lines,
)
from agentctl.terminal import clean, has_colour, is_terminal, is_unicode, put, silence, spelled

_MAX_WRAPPED: Final = 200_000
"""Maximum characters of a text that is wrapped at words. Wrapping a longer one would take too long."""

_LESS: Final = "FRX"
"""The options git uses for less: quit if one screen is enough, keep colours, do not clear the screen."""

_SIGNS: Final = {"+": "green", "-": "red", "@": "dim", " ": ""}


_ROW: Final = Column("", lambda _: "", right=True)
_NUMBER: Final = -1
"""The index of the column of row numbers: ``@1``, ``@2`` and so on."""


class _Spelled:
    """A stream that writes our symbols in ASCII if it supports no others."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(spelled(text, self._stream))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def console_of(stream: TextIO) -> Console:
    """Return the console of a terminal."""
    colour = has_colour(stream)
    return Console(
        file=stream if is_unicode(stream) else _Spelled(stream),  # type: ignore[arg-type]
        force_terminal=True,
        color_system="auto" if colour else None,
        no_color=not colour,
        markup=False,
        emoji=False,
        highlight=False,
    )


class Screen:
    """A terminal that blocks are shown on, with a live part below them.

    :param wide: show all columns of tables.
    """

    def __init__(self, stream: TextIO, *, wide: bool = False) -> None:
        self.console = console_of(stream)
        self._stream = stream
        self._wide = wide
        self._live: Live | None = None
        self.listed: list[str] = []
        """The ids of the rows of the last table, in their order."""

    @property
    def is_dumb(self) -> bool:
        """True if nothing can be redrawn."""
        return self.console.is_dumb_terminal

    def show(self, blocks: Iterable[Block], *, paged: bool = False) -> None:
        """Print blocks above the live part, or through the pager if they are longer than the screen."""
        pager = _pager() if paged else None
        if pager is None:
            for block in blocks:
                self._print(block)
            return
        with self.console.capture() as captured:
            for block in blocks:
                self._print(block)
        text = captured.get()
        if text.count("\n") < self.console.height:
            put(self._stream, text)
        else:
            _page(pager, text)

    def _print(self, block: Block) -> None:
        try:
            if sum(map(len, _texts(block))) > _MAX_WRAPPED:
                for line in plain_lines([block]):
                    self.console.out(line, highlight=False)
            else:
                self.console.print(self.renderable(block))
        except BrokenPipeError:
            raise
        except OSError as error:
            from agentctl.failures import file_failure

            silence(self._stream)
            raise file_failure(error) from error

    def renderable(self, block: Block) -> RenderableType:
        """Return a block for rich."""
        match block:
            case Text(fit=True):
                return _text(block)
            case Markdown():
                return _markdown(clean(block.text))
            case Table():
                return self._table(block)
            case Card():
                return _card(block)
            case Entry():
                return self._entry(block)
            case Diff():
                lines = [
                    RichText(diff_text(line, block), _SIGNS.get(line.sign, ""), overflow="fold")
                    for line in block.lines
                ]
                return Group(*lines, *[RichText(end, "dim") for end in [block.end] if end])
            case Text():
                return _text(block)
            case _:
                return RichText(clean(block), overflow="fold")

    def _table(self, block: Table) -> RenderableType:
        rows = [[cell(column.value(row)) for column in block.columns] for row in block.rows]
        if block.short:
            self.listed = [str(getattr(row, "id", "")) for row in block.rows]
        if not rows:
            return RichText(block.empty, "dim")
        titles = {column.title: n for n, column in enumerate(block.columns)}
        short = [titles[title] for title in block.short.split()]
        others = [n for n in titles.values() if n not in short]
        order = [*short, *others] if self._wide or not short else short
        order = [n for n in order if any(row[n].text for row in rows)]
        if not self._wide:
            order = self._fitting(order, block.columns, rows)
        cells = [[self._cell(row[n]) for n in order] for row in rows]
        if short:
            order = [_NUMBER, *order]
            cells = [[RichText(f"@{n}", "dim"), *row] for n, row in enumerate(cells, 1)]
        columns = [_ROW if n == _NUMBER else block.columns[n] for n in order]
        widths = self._widths(columns, cells)
        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column, width in zip(columns, widths, strict=True):
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis" if column.flexible else "fold",
                width=width,
            )
        for row in cells:
            table.add_row(*row)
        return table

    def _fitting(
        self, order: Sequence[int], columns: Sequence[Column], rows: Sequence[Sequence[Text]]
    ) -> list[int]:
        """Return the columns without those optional ones for which the screen has no room."""
        widths = {
            n: max(len(columns[n].title), *(self._cell(row[n]).cell_len for row in rows))
            for n in order
        }
        kept = [*order]
        for n in reversed(order):
            if sum(widths[one] + 2 for one in kept) - 2 <= self.console.width:
                break
            if columns[n].optional:
                kept.remove(n)
        return kept

    def _cell(self, one: Text) -> RichText:
        text = RichText(one.text if self._wide else short_id(one.text), one.style)
        for start, end in one.marks:
            text.stylize("bold", start, end)
        return text

    def _widths(self, columns: Sequence[Column], cells: Sequence[Sequence[RichText]]) -> list[int]:
        """Return the widths of a table's columns. Flexible columns share the rest of the screen."""
        natural = [
            max(len(column.title), *(row[n].cell_len for row in cells))
            for n, column in enumerate(columns)
        ]
        fixed = sum(
            width for width, column in zip(natural, columns, strict=True) if not column.flexible
        )
        room = self.console.width - fixed - 2 * (len(columns) - 1)
        flexible = sum(column.flexible for column in columns)
        return [
            max(8, min(width, room // flexible)) if column.flexible else width
            for width, column in zip(natural, columns, strict=True)
        ]

    def _entry(self, block: Entry) -> RenderableType:
        grid = RichTable.grid()
        grid.add_column(width=10, style="dim", no_wrap=True)
        grid.add_column(width=11, style="bold", no_wrap=True)
        grid.add_column(width=3, no_wrap=True)
        grid.add_column(ratio=1)
        grid.expand = True
        body = Group(*[self.renderable(one) for one in block.body])
        actor = RichText(clean(block.actor))
        actor.truncate(9, overflow="ellipsis")
        mark = RichText(block.mark, block.mark_style)
        grid.add_row(RichText(block.time), actor, mark, body)
        return grid

    # --- the live part ----------------------------------------------------------------------

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show a live part at the bottom, which :meth:`set_live` changes. It is removed at the end."""
        # Drawn by the task that also prints: another thread would draw between two parts of a print.
        self._live = Live(
            console=self.console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def set_live(self, text: str = "", menu: str = "", *, spinner: str = "") -> None:
        """Set the live part: the end of a text, a menu of keys, and a spinner with the present activity."""
        if self._live is None:
            return
        parts: list[RenderableType] = []
        if text:
            lines = RichText(text[-4_000:]).wrap(self.console, self.console.width - 1)
            parts += lines[-max(self.console.height // 3, 1) :]
        if menu:
            parts.append(RichText(menu, "bold yellow", overflow="fold"))
        if spinner:
            shown = RichText(spinner, "dim", no_wrap=True, overflow="ellipsis")
            parts.append(
                Spinner("dots" if is_unicode(self._stream) else "line", shown, style="dim")
            )
        self._live.update(Group(*parts), refresh=True)


def screen_lines(blocks: Iterable[Block], columns: int, *, colour: bool = True) -> list[str]:
    """Return blocks as lines of a terminal of this width."""
    screen = Screen(sys.stdout)
    screen.console = Console(
        width=columns,
        force_terminal=True,
        markup=False,
        emoji=False,
        highlight=False,
        color_system="standard" if colour else None,
    )
    with screen.console.capture() as captured:
        for block in blocks:
            screen.console.print(screen.renderable(block))
    return captured.get().splitlines()


def _markdown(text: str) -> RichMarkdown:
    """Return formatted text. Line breaks are kept, and HTML is shown as text."""
    markdown = RichMarkdown(text, hyperlinks=False, code_theme="ansi_dark")
    for token in markdown.parsed:
        token.type = "code_block" if token.type == "html_block" else token.type
        for child in token.children or ():
            child.type = _INLINE.get(child.type, child.type)
    return markdown


_INLINE: Final = {"softbreak": "hardbreak", "html_inline": "text"}


def _text(block: Text) -> RichText:
    overflow: OverflowMethod = "ellipsis" if block.fit else "fold"
    return RichText(block.harmless.expandtabs(4), block.style, no_wrap=block.fit, overflow=overflow)


def short_id(value: str) -> str:
    """Return the end of an id, which is enough to identify it; any other text unchanged."""
    prefix, _, rest = value.partition("_")
    return rest[-6:] if len(rest) == 26 and len(prefix) == 3 and rest.isalnum() else value


def _card(block: Card) -> RenderableType:
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in block.present:
        grid.add_row(RichText(name), RichText(value.text, value.style))
    return Group(_text(block.title), Padding(grid, (0, 0, 0, 2)))


def _texts(block: Block) -> Iterator[str]:
    match block:
        case str():
            yield block
        case Text() | Markdown():
            yield block.text
        case Entry():
            for one in block.body:
                yield from _texts(one)


def _pager() -> list[str] | None:
    """Return the command of ``AGENTCTL_PAGER``, ``PAGER`` or less. Empty and ``cat`` disable it."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)) or os.environ.get("TERM") == "dumb":
        return None
    try:
        argv = shlex.split(os.environ.get("AGENTCTL_PAGER", os.environ.get("PAGER", "less")))
    except ValueError:
        return None
    return argv if argv and argv != ["cat"] and shutil.which(argv[0]) else None


def _page(argv: list[str], text: str) -> None:
    # Only the pager handles interrupts. An ignored signal would be inherited, so a handler is set.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    environment = {"LESS": _LESS} | dict(os.environ)
    try:
        with suppress(BrokenPipeError):  # the user has quit the pager
            subprocess.run(
                argv, input=text.encode(errors="backslashreplace"), env=environment, check=False
            )
    finally:
        signal.signal(signal.SIGINT, before)
