"""Tables derived from attrs classes: one column per field, typed by the field's annotation.

=========================== ==========================================================================
type of the field           column
=========================== ==========================================================================
``str``, number             unchanged
``bool``                    0 or 1
``datetime``                RFC 3339
enumeration                 its value
mapping, tuple, attrs class JSON; an attrs object becomes a JSON object with its fields
=========================== ==========================================================================

None is stored as NULL. So is a JSON value that equals the default of its field.
"""

import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from operator import attrgetter, itemgetter
from typing import Any, Final, Generic, TypeVar

import attrs

from agent_orchestrator.wire.codec import format_time, parse_time
from agent_orchestrator.wire.strict_json import dumps

T = TypeVar("T")
Row = Sequence[Any]
Values = tuple[Any, ...]
Convert = Callable[[Any], Any]

NULL_JSON: Final = "null"


@attrs.frozen
class Cell:
    """The conversion between a field's value and its cell.

    :param write: converts a value to its cell; None to store it unchanged. Not called for None.
    :param read: converts a cell to its value; None to use it unchanged. Not called for NULL.
    :param missing: the value to read for NULL.
    :param null: the cell to write for None.
    """

    write: Convert | None = None
    read: Convert | None = None
    missing: Any = None
    null: Any = None


@attrs.frozen
class Table(Generic[T]):
    """The columns of an attrs class.

    :param columns: column names, separated by ``", "``, in the order of :attr:`values`.
    :param values: returns an object's cells.
    :param read: returns the object of a row. The row has these columns, then the read-only ones.
        Further columns are ignored.
    """

    columns: str
    values: Callable[[T], Values]
    read: Callable[[Row], T]

    def of(self, table: str) -> str:
        """Return the columns, qualified with a table name."""
        return ", ".join(f"{table}.{name}" for name in self.columns.split(", "))

    def select(self, **expressions: str) -> str:
        """Return the columns, with some replaced by expressions."""
        return ", ".join(expressions.get(name, name) for name in self.columns.split(", "))


def table(
    model: type[T],
    *,
    spread: Sequence[str] = (),
    read_only: Mapping[str, Cell] | None = None,
    cells: Mapping[str, Cell] | None = None,
    names: Mapping[str, str] | None = None,
) -> Table[T]:
    """Return the table of an attrs class.

    :param spread: fields whose objects are stored in one column per inner field, for example
        ``source_kind`` for the ``kind`` of a ``source``.
    :param read_only: fields computed by the query, in the order of their columns in a row.
    :param cells: conversions for fields whose annotation does not determine one.
    :param names: names of columns that differ from their field's, by field.
    """
    read_only, cells, names = read_only or {}, cells or {}, names or {}
    hints = typing.get_type_hints(model)
    fields = {attribute.name: attribute for attribute in attrs.fields(model)}  # type: ignore[arg-type]
    single = [name for name in fields if name not in spread and name not in read_only]
    conversions = {name: cells.get(name) or _cell(hints[name], fields[name]) for name in single}
    parts = {name: _spread(name, hints[name]) for name in spread}
    columns = [names.get(name, name) for name in single]
    for part in parts.values():
        columns += part.columns

    # attrgetter also fetches the inner fields, in one C call per row. An object that may be None is split later.
    paths = [*single]
    for name, part in parts.items():
        paths += [name] if part.may_be_missing else [f"{name}.{field}" for field in part.fields]
    get = attrgetter(*paths)
    writers = [
        (n, conversions[name].write, conversions[name].null)
        for n, name in enumerate(single)
        if conversions[name].write
    ]
    optional_parts = [
        (paths.index(name), part.write) for name, part in parts.items() if part.may_be_missing
    ]
    optional_parts.reverse()

    def values(value: T) -> Values:
        cells = list(get(value))
        for index, write, null in writers:
            cell = cells[index]
            cells[index] = null if cell is None else write(cell)  # type: ignore[misc]
        for index, split in optional_parts:
            cells[index : index + 1] = split(cells[index])
        return tuple(cells)

    # Reorder a row to the order of the model's fields. The spread objects are appended to it first.
    order = [*columns, *read_only]
    positions = {name: index for index, name in enumerate(single)}
    positions |= {name: index for index, name in enumerate(read_only, len(columns))}
    positions |= {name: index for index, name in enumerate(spread, len(order))}
    in_order = itemgetter(*(positions[name] for name in fields))
    conversions |= read_only
    readers = [
        (positions[name], conversion.read, conversion.missing)
        for name, conversion in conversions.items()
        if conversion.read
    ]
    joined = [(columns.index(part.columns[0]), part.read) for part in parts.values()]
    width = len(order)

    def read(row: Row) -> T:
        cells = list(row[:width])
        for index, convert, missing in readers:
            cell = cells[index]
            cells[index] = missing if cell is None else convert(cell)
        for start, join in joined:
            cells.append(join(cells, start))
        return model(*in_order(cells))

    return Table(", ".join(columns), values, read)


@attrs.frozen
class _Spread:
    """An object stored in one column per field."""

    fields: list[str]
    columns: list[str]
    may_be_missing: bool
    write: Callable[[Any], Values]
    read: Callable[[list[Any], int], Any]
    """Takes a row's cells and the index of the first; returns the object."""


def _spread(name: str, hint: Any) -> _Spread:
    kind, may_be_missing = _without_none(hint)
    names = [attribute.name for attribute in attrs.fields(kind)]
    get, missing, width = attrgetter(*names), (None,) * len(names), len(names)

    def write(value: Any) -> Values:
        return missing if value is None else get(value)

    def read(cells: list[Any], start: int) -> Any:
        if may_be_missing and cells[start] is None:
            return None
        return kind(*cells[start : start + width])

    return _Spread(names, [f"{name}_{field}" for field in names], may_be_missing, write, read)


def _cell(hint: Any, field: Any) -> Cell:
    """Return the conversion for a field, by its annotation."""
    kind, may_be_missing = _without_none(hint)
    if kind is bool:
        return Cell(read=bool)
    if kind is datetime:
        return Cell(format_time, parse_time)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return Cell(read={str(member): member for member in kind}.__getitem__)
    if (as_plain := _plain(kind)) is None:
        return Cell()
    default = None if may_be_missing else _default(field)
    return _json(as_plain, default)


def always_json(kind: Any) -> Cell:
    """Return the conversion for an optional value whose column is NOT NULL."""
    as_plain = _plain(kind)
    assert as_plain is not None
    as_json = _json(as_plain, None)
    assert as_json.read is not None
    read = as_json.read
    return Cell(
        as_json.write, lambda text: None if text == NULL_JSON else read(text), null=NULL_JSON
    )


def _json(as_plain: Cell, missing: Any) -> Cell:
    """Return a conversion to JSON that stores the default value as NULL."""
    to_plain, from_plain = as_plain.write or _identity, as_plain.read

    def write(value: Any) -> str | None:
        return None if missing is not None and value == missing else dumps(to_plain(value))

    def read(text: str) -> Any:
        assert from_plain is not None
        return from_plain(json.loads(text))

    if missing is None and as_plain.write is None:
        return Cell(dumps, json.loads if from_plain is None else read)
    return Cell(write, json.loads if from_plain is None else read, missing)


def _identity(value: Any) -> Any:
    return value


def _plain(kind: Any) -> Cell | None:
    """Return the conversion to a JSON-compatible value; None for types that are not stored as JSON."""
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Cell()
    if origin is tuple:
        inner = _plain(typing.get_args(kind)[0])
        if inner is None or inner.write is None or inner.read is None:
            return Cell(read=tuple)
        to_plain, from_plain = inner.write, inner.read
        return Cell(
            lambda values: [to_plain(value) for value in values],
            lambda plain: tuple(from_plain(value) for value in plain),
        )
    return _named(kind) if attrs.has(kind) else None


def _named(kind: Any) -> Cell:
    """Return the conversion between an attrs object and a dictionary of its fields."""
    names = [attribute.name for attribute in attrs.fields(kind)]
    get = attrgetter(*names)
    hints = typing.get_type_hints(kind)
    lists = [name for name in names if typing.get_origin(hints[name]) is tuple]

    def write(value: Any) -> dict[str, Any]:
        return dict(zip(names, get(value), strict=True))

    def read(plain: dict[str, Any]) -> Any:
        for name in lists:
            plain[name] = tuple(plain[name])
        return kind(**plain)

    return Cell(write, read)


def _default(field: Any) -> Any:
    default = field.default
    if default is attrs.NOTHING:
        return None
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return an annotation without ``None``, and whether it had it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        if len(kinds) < len(typing.get_args(hint)):
            return kinds[0], True
    return hint, False
