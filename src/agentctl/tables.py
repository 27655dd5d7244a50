"""Aligned text of the live screen, until it is made with textual."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, Literal, TextIO

from attrs import frozen

from agent_orchestrator.domain.model import Request
from agentctl.questions import expires_soon, time_left
from agentctl.terminal import _width, has_colour, is_terminal, is_unicode, one_line, revealed, width
from agentctl.times import ago, clock


@frozen
class Cell:
    """A text with styles. The text must be clean and on one line."""

    text: str
    styles: tuple[str, ...] = ()


@frozen
class Column:
    """A column of a table.

    :param flexible: shorten it if the terminal is narrow. Other columns are never cut, so that ids
        can be copied.
    :param optional: omit it if the terminal is too narrow.
    """

    title: str
    align: Literal["left", "right"] = "left"
    flexible: bool = False
    optional: bool = False


_GAP = "  "
_WIDEST = 300
"""Maximum width to which cells are padded, so that one very wide cell does not widen all rows."""

_LEAST = 12
"""Minimum width of a flexible column."""


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]], style: "Style"
) -> list[str]:
    """Return the lines of a table; none if there are no rows."""
    if not rows:
        return []
    cells = [[_cell(value) for value in row] for row in rows]
    columns_shown = [n for n in range(len(columns)) if any(row[n].text for row in cells)]
    widths = {
        n: max(width(columns[n].title), *(width(row[n].text) for row in cells))
        for n in columns_shown
    }
    if style.columns is not None:
        columns_shown = _fit(columns, columns_shown, widths, style.columns)
    header = [Cell(columns[n].title, ("dim",)) for n in columns_shown]
    body = [[row[n] for n in columns_shown] for row in cells]
    return [
        _line([columns[n] for n in columns_shown], [widths[n] for n in columns_shown], row, style)
        for row in [header, *body]
    ]


def _cell(value: str | Cell) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _fit(
    columns: Sequence[Column], columns_shown: list[int], widths: dict[int, int], room: int
) -> list[int]:
    """Omit optional columns from the right, then shorten flexible ones, until the table fits."""
    flexible = [n for n in columns_shown if columns[n].flexible]
    while True:
        fixed = sum(widths[n] for n in columns_shown if n not in flexible) + len(_GAP) * (
            len(columns_shown) - 1
        )
        if fixed + sum(min(widths[n], _LEAST) for n in flexible) <= room:
            break
        droppable = [n for n in columns_shown if columns[n].optional and n not in flexible]
        if not droppable:
            break
        columns_shown = [n for n in columns_shown if n != droppable[-1]]
    spare = max(room - fixed, 0)
    for index, n in enumerate(flexible):
        widths[n] = min(widths[n], max(spare // (len(flexible) - index), _LEAST))
        spare -= widths[n]
    return columns_shown


def _line(
    columns: Sequence[Column], widths: Sequence[int], cells: list[Cell], style: "Style"
) -> str:
    parts = []
    for column, room, cell in zip(columns, widths, cells, strict=True):
        text = cell.text
        if column.flexible and style.columns is not None:
            text = truncated(text, room, ellipsis=style.symbol("…", "..."))
        space = " " * (min(room, _WIDEST) - width(text))
        painted = style.paint(text, *cell.styles)
        parts.append(space + painted if column.align == "right" else painted + space)
    return _GAP.join(parts).rstrip()


def card(title: str, pairs: Sequence[tuple[str, str | Cell | None]], style: "Style") -> list[str]:
    """Return the lines of a card: a title, then names and values. Empty values are omitted."""
    present = [(name, _cell(value)) for name, value in pairs if value not in (None, "")]
    room = max((width(name) for name, _ in present), default=0)
    lines = [title]
    for name, cell in present:
        limit = None if style.columns is None else style.columns - room - 4
        first, *rest = wrapped(cell.text, limit)
        label = style.paint(name.ljust(room), "dim")
        lines.append(f"  {label}  {style.paint(first, *cell.styles)}")
        lines += [f"  {' ' * room}  {style.paint(line, *cell.styles)}" for line in rest]
    return lines


def truncated(text: str, columns: int, *, ellipsis: str = "…") -> str:
    """Return the text, cut to the given width with an ellipsis if it is longer."""
    room = columns - width(ellipsis)
    used = end = 0
    for position, character in enumerate(text, 1):
        used += _width(character)
        if used <= room:
            end = position
        elif used > columns:
            return text[:end] + ellipsis if room > 0 else ellipsis[:columns]
    return text


def wrapped(text: str, columns: int | None) -> list[str]:
    """Return the lines of a cleaned text, wrapped between words; None does not wrap."""
    return list(lines_of(text, columns))


def lines_of(text: str, columns: int | None) -> Iterator[str]:
    """Yield the lines of :func:`wrapped` one at a time, to save memory."""
    for raw_line in _split(text):
        line = raw_line.rstrip().expandtabs(4)
        if columns is None or width(line) <= columns:
            yield line
        else:
            yield from _broken(line, max(columns, 8))


def _split(text: str) -> Iterator[str]:
    position = 0
    while (end := text.find("\n", position)) >= 0:
        yield text[position:end]
        position = end + 1
    yield text[position:] if position else text


_WORD: Final = re.compile(r"\s*+\S++")


def _broken(line: str, columns: int) -> list[str]:
    """Wrap a line that has no trailing whitespace."""
    indent = line[: len(line) - len(line.lstrip())]
    indent = indent if len(indent) < columns // 2 else ""
    lines, current, used = [], indent, len(indent)
    for match in _WORD.finditer(line, len(indent)):
        word = match.group()
        size = width(word)
        if used + size > columns:
            if current.strip():
                lines.append(current.rstrip())
            current, used, word = indent, len(indent), word.lstrip()
            size = width(word)
        if used + size > columns:
            *full, word = _pieces(word, columns - used)
            lines += [current + piece for piece in full]
            size = width(word)
        current += word
        used += size
    return [*lines, current]


def _pieces(word: str, columns: int) -> list[str]:
    """Split a word into pieces of at most the given width."""
    if word.isascii():
        return [word[start : start + columns] for start in range(0, len(word), columns)]
    pieces, start, used = [], 0, 0
    for position, character in enumerate(word):
        used += _width(character)
        if used > columns:
            pieces.append(word[start:position])
            start, used = position, _width(character)
    return [*pieces, word[start:]]


_CODES: Final = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33",
    "blue": "34", "magenta": "35", "cyan": "36",
}  # fmt: skip


@frozen
class Style:
    """The capabilities of an output stream.

    :param colour: True if it supports colours.
    :param unicode: True if it supports more than ASCII.
    :param columns: its width; None for files and pipes, whose lines are neither wrapped nor cut.
    """

    colour: bool = False
    unicode: bool = True
    columns: int | None = None

    def paint(self, text: str, *styles: str) -> str:
        """Return the text in these styles, or unchanged without colours."""
        if not self.colour or not styles or not text:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def symbol(self, rich: str, plain: str) -> str:
        """Return ``rich`` if the stream supports Unicode, else ``plain``."""
        return rich if self.unicode else plain


def style_of(stream: TextIO) -> Style:
    """Return the style of a stream."""
    columns = max(40, shutil.get_terminal_size((100, 24)).columns) if is_terminal(stream) else None
    return Style(has_colour(stream), is_unicode(stream), columns)


def request_table(requests: Sequence[Request], style: Style, now: datetime) -> list[str]:
    several = any(not request.is_open for request in requests)
    columns = [
        Column("REQUEST"),
        Column("KIND"),
        Column("STATUS"),
        Column("ASKED", align="right"),
        Column("EXPIRES", align="right"),
        Column("SESSION", optional=True),
        Column("TEXT", flexible=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            request.id,
            request.kind.removesuffix("_request"),
            Cell(request.status, ()) if several else "",
            ago(request.created_at, now),
            Cell(time_left(request, now), ("red", "bold") if expires_soon(request, now) else ()),
            request.session_id,
            one_line(revealed(request.text[:2000])),
        ]
        for request in requests
    ]
    return table(columns, rows, style) or ["no requests"]


def request_card(request: Request, style: Style, now: datetime) -> list[str]:
    """Return the lines of a detailed view of a request."""
    end = f"{time_left(request, now)}  ({clock(request.expires_at)})"
    lines = card(
        f"{style.paint('request', 'dim')} {style.paint(request.id, 'bold')}",
        [
            ("kind", request.kind.removesuffix("_request")),
            ("session", request.session_id),
            ("run", request.run_id),
            ("asked", ago(request.created_at, now)),
            ("expires", end),
        ],
        style,
    )
    lines += ["", *wrapped(revealed(request.text), style.columns)]
    if request.detail:
        detail = json.dumps(request.detail, ensure_ascii=False, indent=2)
        lines += ["", style.paint("DETAIL", "dim"), *wrapped(revealed(detail), style.columns)]
    return lines
