"""The output of a command for people: texts, tables and cards. No I/O.

Texts may come from agents and other untrusted sources. A terminal and a file both get them without control
characters.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, tzinfo
from typing import Any, Final, TypeAlias

from attrs import frozen

from agentctl.terminal import clean, one_line, revealed, width

_INDENT: Final = 23
"""Columns before the text of an entry: time, actor and mark."""

_WIDEST: Final = 300
"""Maximum width to which cells are padded, so that one very wide cell does not widen all rows."""

MAX_CELL: Final = 2_000
"""Maximum characters of a cell that is kept on one line."""


@frozen
class Text:
    """A text of any number of lines.

    :param style: words of rich, such as ``bold red``.
    :param fit: keep it on one line, and shorten it on a terminal.
    :param reveal: show control characters instead of removing them, so that a question is seen whole.
    :param marks: ranges to emphasise in a table on a terminal, in order: the first character, and the one after
        the last.
    """

    text: str
    style: str = ""
    fit: bool = False
    reveal: bool = False
    marks: tuple[tuple[int, int], ...] = ()

    @property
    def harmless(self) -> str:
        """The text without control characters."""
        text = revealed(self.text) if self.reveal else clean(self.text)
        return " ".join(text.split()) if self.fit and "\n" in text else text


@frozen
class Markdown:
    """An agent's text, formatted on a terminal."""

    text: str


Cell: TypeAlias = str | Text | None


@frozen
class Column:
    """A column of a table: its title, and the cell of a row."""

    title: str
    value: Callable[[Any], Cell]
    right: bool = False
    flexible: bool = False
    """Shortened on a narrow terminal."""
    optional: bool = False
    """Left out of a terminal without room for it, the last one first."""
    only_on_terminal: bool = False


@frozen
class Table:
    """Rows with columns. Columns without any text are left out.

    :param empty: what to show without rows.
    :param short: the titles of the columns on a terminal, in this order; empty for all. The others
        need ``--wide``.
    """

    columns: Sequence[Column]
    rows: Sequence[Any]
    empty: str = ""
    short: str = ""


@frozen
class Card:
    """A title, then names and values. Empty values are left out."""

    title: Text
    pairs: Sequence[tuple[str, Cell]]

    @property
    def present(self) -> list[tuple[str, Text]]:
        """The pairs with a value."""
        return [(name, cell(value)) for name, value in self.pairs if value not in (None, "")]


@frozen
class Entry:
    """An entry of a transcript: time, actor, mark and text."""

    at: datetime
    actor: str
    mark: str
    mark_style: str
    body: "Sequence[Block]"
    zone: tzinfo | None = None

    @property
    def time(self) -> str:
        return self.at.astimezone(self.zone).strftime("%H:%M:%S")

    @property
    def day(self) -> date:
        return self.at.astimezone(self.zone).date()


@frozen
class DiffLine:
    """A line of a file's change: its sign (``+``, ``-``, a space, or ``@`` between hunks) and number."""

    sign: str
    number: int | None
    text: str


@frozen
class Diff:
    """Lines of a file's change; ``hidden`` is the number of further ones."""

    lines: Sequence[DiffLine]
    hidden: int = 0

    @property
    def end(self) -> str:
        return f"… {self.hidden:,} more lines" if self.hidden else ""


Block: TypeAlias = str | Text | Markdown | Table | Card | Entry | Diff


def cell(value: Cell) -> Text:
    """Return a cell as a text on one line."""
    found = value if isinstance(value, Text) else Text(value or "")
    if found.marks:
        return _marked(found)
    text = found.text[:MAX_CELL] if found.fit else found.text
    text = revealed(text) if found.reveal else clean(text)
    return Text(one_line(text) if "\n" in text or "\t" in text else text.rstrip(), found.style)


def _marked(found: Text) -> Text:
    """Return a text on one line, with its marks moved to their places in the cleaned text."""
    text, place = "", 0
    marks: list[tuple[int, int]] = []
    for start, end in found.marks:
        text += clean(found.text[place:start])
        word = clean(found.text[start:end])
        marks.append((len(text), len(text) + len(word)))
        text, place = text + word, end
    text = (text + clean(found.text[place:])).rstrip()
    return Text(text.replace("\n", " "), found.style, marks=tuple(marks))


def plain_lines(blocks: Iterable[Block]) -> Iterator[str]:
    """Yield the lines of blocks for files and pipes, whole and without colours."""
    for block in blocks:
        match block:
            case str():
                yield from _lines(clean(block))
            case Text():
                yield from _lines(block.harmless)
            case Markdown():
                yield from _lines(clean(block.text))
            case Table():
                yield from _table(block)
            case Card():
                yield from _card(block)
            case Entry():
                yield from _entry(block)
            case Diff():
                yield from (diff_text(line, block) for line in block.lines)
                yield from filter(None, [block.end])


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text, one at a time to save memory."""
    position = 0
    while (end := text.find("\n", position)) >= 0:
        yield text[position:end].rstrip().expandtabs(4)
        position = end + 1
    yield (text[position:] if position else text).rstrip().expandtabs(4)


def _table(block: Table) -> Iterator[str]:
    columns = [column for column in block.columns if not column.only_on_terminal]
    rows = [[cell(column.value(row)).text for column in columns] for row in block.rows]
    if not rows and block.empty:
        yield block.empty
        return
    shown = [n for n in range(len(columns)) if any(row[n] for row in rows)]
    titles = [column.title for column in columns]
    widths = [max([width(titles[n]), *(width(row[n]) for row in rows)]) for n in shown]
    for row in [titles, *rows] if rows else ():
        parts = []
        for n, room in zip(shown, widths, strict=True):
            space = " " * (min(room, _WIDEST) - width(row[n]))
            parts.append(space + row[n] if columns[n].right else row[n] + space)
        yield "  ".join(parts).rstrip()


def _card(block: Card) -> Iterator[str]:
    yield block.title.harmless
    room = max((width(name) for name, _ in block.present), default=0)
    for name, value in block.present:
        yield f"  {name.ljust(room)}  {value.text}"


def _entry(block: Entry) -> Iterator[str]:
    actor = block.actor if width(block.actor) <= 9 else block.actor[:8] + "…"
    head = f"{block.time}  {actor}{' ' * (9 - width(actor))}  {block.mark or ' '} "
    for line in plain_lines(block.body):
        yield (head + line).rstrip()
        head = " " * _INDENT
    if head.strip():
        yield head.rstrip()


def diff_text(line: DiffLine, block: Diff) -> str:
    """Return a line of a diff with its number."""
    room = max((len(str(one.number)) for one in block.lines if one.number is not None), default=1)
    if line.sign == "@":
        return f"{'⋮':>{room}} {clean(line.text)}".rstrip()
    number = "" if line.number is None else line.number
    return f"{number:>{room}} {line.sign}{revealed(line.text).expandtabs(4)}"
