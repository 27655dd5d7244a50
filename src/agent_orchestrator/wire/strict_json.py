"""JSON as RFC 8259 means it: no NaN, no key twice, no bottomless nesting, no endless numbers.

Python's own reader accepts all of these; what one reader accepts and the next refuses is how
requests come to mean two things. Lone surrogates, which an escape can write, are refused where a
field is checked (:mod:`agent_orchestrator.fields`), by the name of the field.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final, NoReturn

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.fields import MAX_DIGITS, has_many_digits, shown
from agent_orchestrator.wire.encoded import Encoded


def _default(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"JSON cannot say a {type(value).__name__}")


_ENCODE = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_default
).encode


def dumps(value: Any) -> str:
    """Return compact JSON text, non-ASCII characters as themselves.

    :raises ValueError: if a number is not finite.
    :raises TypeError: if JSON cannot say the value.
    """
    return _ENCODE(value)


SLICE_SIZE: Final = 64 * 2**10
"""Characters of a string that are encoded in one call of C code, which no other thread can interrupt."""

_LONG_VALUE: Final = 1_000
_SCALARS: Final = frozenset({int, float, bool, type(None)})


def is_long(value: Any) -> bool:
    """Return whether a value is so long that :func:`encode_in_slices` shall encode it, in a worker thread.

    It is where its texts have more characters than :data:`SLICE_SIZE`, or it has parts by the thousand.
    """
    parts = [value]
    size = 0
    for part in parts:  # grows meanwhile
        kind = type(part)
        if kind is str:
            size += len(part)
        elif kind is Encoded:
            size += len(part.text)
        elif kind is list or kind is tuple:
            parts += part[:_LONG_VALUE]
        elif kind is dict or (kind not in _SCALARS and isinstance(part, Mapping)):
            parts += part
            parts += part.values()
        if size > SLICE_SIZE or len(parts) > _LONG_VALUE:
            return True
    return False


def check_unicode(text: str) -> None:
    """Raise :exc:`UnicodeEncodeError` if a text holds half a surrogate pair."""
    if not text.isascii():
        for place in range(0, len(text), SLICE_SIZE):
            text[place : place + SLICE_SIZE].encode()


def encode_in_slices(value: Any) -> bytes:
    """Return what :func:`dumps` does, in UTF-8, by many short calls of C code.

    Other threads go on meanwhile. It takes little memory beside the value and its text.

    :raises ValueError: if a number is not finite, or a text is not Unicode.
    :raises TypeError: if JSON cannot say the value.
    """
    if type(value) is Encoded:
        return value.text
    file = BytesIO()
    write_in_slices(
        value, lambda piece: file.write(piece if type(piece) is bytes else piece.encode())
    )
    return file.getvalue()  # shares the memory of the file


def size_of(value: Any) -> int:
    """Return how many bytes of UTF-8 :func:`dumps` would return, without their memory."""
    size = 0

    def count(piece: str | bytes) -> None:
        nonlocal size
        size += len(piece if isinstance(piece, bytes) else piece.encode())

    write_in_slices(value, count)
    return size


def text_of(value: Any) -> str:
    """Return the same as text."""
    return encode_in_slices(value).decode()


def write_in_slices(value: Any, write: Callable[[Any], object]) -> None:
    """Write what :func:`dumps` returns piece by piece, each of little memory.

    :param write: is given each piece as text, or as bytes in UTF-8 where it was encoded before.
    :raises ValueError: if a number is not finite.
    :raises TypeError: if JSON cannot say the value.
    """
    if type(value) is Encoded:
        write(value.text)
    elif not is_long(value):
        write(_ENCODE(value))
    elif isinstance(value, str):
        _write_text(value, write)
    elif isinstance(value, Mapping):
        mark = "{"
        for name, part in value.items():
            write(mark)
            if isinstance(name, str):
                _write_text(name, write)
            else:
                write(_ENCODE({name: 0})[1:-3])
            write(":")
            write_in_slices(part, write)
            mark = ","
        write("}")
    elif isinstance(value, (list, tuple)):
        mark = "["
        for part in value:
            write(mark)
            write_in_slices(part, write)
            mark = ","
        write("]")
    else:
        write(_ENCODE(value))


def _write_text(text: str, write: Callable[[Any], object]) -> None:
    if len(text) <= SLICE_SIZE:
        write(_ENCODE(text))
        return
    write('"')
    for place in range(0, len(text), SLICE_SIZE):
        write(_ENCODE(text[place : place + SLICE_SIZE])[1:-1])
    write('"')


_ENCODE_SORTED = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


def canonical(value: Any) -> str:
    """Return JSON text that is the same for equal values, whatever the order of their keys."""
    return _ENCODE_SORTED(value)


def json_copy(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that shares nothing with the original, as a reader of the JSON would see it."""
    copy: dict[str, Any] = json.loads(dumps(value))
    return copy


MAX_NESTING: Final = 500
"""Levels of arrays and objects in a document. Python's own limit differs from version to version."""

MAX_STORED_NESTING: Final = 400
"""Levels of arrays and objects in a value that is stored. Whoever reads it gets it within an answer, an
event and a page: what is stored must leave room for their levels, now and later."""


MAX_STORED_VALUES: Final = 2**21
"""Values in what is stored. Each takes up to three signs as JSON, of which clients take 2**23 at once."""

MAX_STORED_SIZE: Final = 240 * 2**20
"""Bytes of JSON in what is stored. Clients take 256 MiB at once."""


def check_readable(value: Any) -> None:
    """Check that :func:`loads` can read what :func:`dumps` writes of a value, also within an answer.

    :param value: what JSON can say, so without a circle.
    :raises ValueError: if it is nested deeper than :data:`MAX_STORED_NESTING`, has more than
        :data:`MAX_STORED_VALUES`, an object has two keys that are one in JSON, or a number has too many
        digits.
    """
    if type(value) is Encoded:
        return  # it was checked when it was encoded
    level = [value]
    depth = count = 0
    while level:
        count += len(level)
        if count > MAX_STORED_VALUES:
            raise ValueError(f"it has more than {MAX_STORED_VALUES:,} values")
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                continue
            if isinstance(one, (Mapping, list, tuple)):
                if depth == MAX_STORED_NESTING:
                    raise ValueError(f"it is nested deeper than {MAX_STORED_NESTING} levels")
                if isinstance(one, Mapping):
                    _check_keys(one)
                    inner += one.values()
                else:
                    inner += one
            elif isinstance(one, int) and has_many_digits(one):
                raise ValueError(f"it holds a number of more than {MAX_DIGITS} digits")
        level = inner
        depth += 1


def _check_keys(value: Mapping[Any, Any]) -> None:
    if all(type(name) is str for name in value):
        return
    # A key that is no text becomes one: 1 and "1" are the same.
    names = [name if isinstance(name, str) else _ENCODE({name: 0})[2:-4] for name in value]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"it has the key {shown(twice)!r} twice")


def loads(
    data: bytes | bytearray, *, field: str = "body", most: int | None = None, is_last: bool = False
) -> Any:
    """Read one JSON document, in time linear in its length.

    :param field: what to call the text in the error.
    :param most: how many values it may hold, names of members included; any number without it.
    :param is_last: whether nobody needs the data afterwards. Then a ``bytearray`` is emptied before its
        values are made, to spare memory.
    :raises InvalidRequest: if it is not strict JSON in UTF-8, or holds more.
    """
    if most is not None and has_more_values(data, most):
        raise InvalidRequest.of({field: f"holds more than {most:,} values"})
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest.of({field: f"is not UTF-8: byte {error.start}"}) from None
    brackets = data.count(b"[") + data.count(b"{")
    if is_last and isinstance(data, bytearray):
        data.clear()
    try:
        value = _DECODE(text)
    except _NotStrictError as error:
        raise InvalidRequest.of({field: str(error)}) from None
    except RecursionError:
        raise InvalidRequest.of({field: "is nested too deeply"}) from None
    except ValueError as error:
        raise InvalidRequest.of({field: f"is not JSON: {error}"}) from None
    if brackets > MAX_NESTING and _is_deep(value):
        raise InvalidRequest.of({field: "is nested too deeply"})
    return value


def _is_deep(value: Any) -> bool:
    level = [value] if type(value) is dict or type(value) is list else []
    for _ in range(MAX_NESTING):
        level = [
            part
            for outer in level
            for part in (outer.values() if type(outer) is dict else outer)
            if type(part) is dict or type(part) is list
        ]
        if not level:
            return False
    return True


class _NotStrictError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _NotStrictError(f"has the key {shown(name)!r} twice")
            seen.add(name)
    return found


def has_more_values(data: bytes | bytearray, most: int) -> bool:
    """Tell whether a JSON text holds more values than that, without reading it.

    Values are the costly part of a document: a megabyte of text is read in a moment, a megabyte of
    ``[[],[],…`` takes a hundred times as long and as much memory.
    """
    if _separators(data) <= most:
        return False
    # Commas within strings do not count. What is escaped cannot end a string.
    bare = data.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > 2 * most:
        return True
    return _separators(b"".join(bare.split(b'"')[::2])) > most


def _separators(data: bytes | bytearray) -> int:
    return sum(data.count(sign) for sign in (b",", b":", b"[", b"{"))


def _integer(digits: str) -> int:
    # The time Python takes for one goes with the square of its length.
    if len(digits) - digits.startswith("-") > MAX_DIGITS:
        raise _NotStrictError(f"holds a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise _NotStrictError(f"holds {name}, which is not JSON")


_DECODE = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_int=_integer
).decode
