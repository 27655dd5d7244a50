"""Aligned text: tables and cards. No I/O."""

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from agentctl.terminal import Style, truncated, width, wrapped


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
    columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]], style: Style
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


def _line(columns: Sequence[Column], widths: Sequence[int], cells: list[Cell], style: Style) -> str:
    parts = []
    for column, room, cell in zip(columns, widths, cells, strict=True):
        text = cell.text
        if column.flexible and style.columns is not None:
            text = truncated(text, room, ellipsis=style.symbol("…", "..."))
        space = " " * (min(room, _WIDEST) - width(text))
        painted = style.paint(text, *cell.styles)
        parts.append(space + painted if column.align == "right" else painted + space)
    return _GAP.join(parts).rstrip()


def card(title: str, pairs: Sequence[tuple[str, str | Cell | None]], style: Style) -> list[str]:
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
