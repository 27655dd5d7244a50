"""Strict JSON (RFC 8259): no NaN, no duplicate keys, limited nesting, limited numbers.

Python's decoder accepts all of these. If one reader accepts what another rejects, the same request
can mean two things. Lone surrogates are refused later, when fields are checked
(:mod:`agent_orchestrator.fields`), so that the error names the field.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final, Literal, NoReturn

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.fields import MAX_DIGITS, has_many_digits, shown
from agent_orchestrator.wire.encoded import Encoded
from agent_orchestrator.wire.long_json import take_strings


def _default(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot be encoded as JSON")


_ENCODE = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_default
).encode


def dumps(value: Any) -> str:
    """Return compact JSON text. Non-ASCII characters are not escaped.

    :raises ValueError: if a number is not finite.
    :raises TypeError: if an object has no JSON form.
    """
    return _ENCODE(value)


SLICE_SIZE: Final = 64 * 2**10
"""Characters of a string to encode in one C call, during which no other thread can run."""

_LONG_VALUE: Final = 1_000
_SCALARS: Final = frozenset({int, float, bool, type(None)})


def is_long(value: Any) -> bool:
    """Return whether a value is long enough for :func:`encode_in_slices` in a worker thread.

    That is the case if its text has more than :data:`SLICE_SIZE` characters, or if it has more than
    about 1000 parts.
    """
    parts = [value]
    size = 0
    for part in parts:  # the list grows during the loop
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


def text_length(value: Any) -> int:
    """Return the characters of all texts in a value, without encoding it."""
    parts = [value]
    size = 0
    for part in parts:  # the list grows during the loop
        kind = type(part)
        if kind is str:
            size += len(part)
        elif kind is Encoded:
            size += len(part.text)
        elif kind is list or kind is tuple:
            parts += part
        elif isinstance(part, Mapping):
            parts += part
            parts += part.values()
    return size


def check_unicode(text: str) -> None:
    """Raise :exc:`UnicodeEncodeError` if a text contains a lone surrogate."""
    if not text.isascii():
        for start in range(0, len(text), SLICE_SIZE):
            text[start : start + SLICE_SIZE].encode()


def encode_in_slices(value: Any) -> bytes:
    """Return :func:`dumps` of a value in UTF-8, encoded in many short C calls.

    Other threads can run in between, and little extra memory is used.

    :raises ValueError: if a number is not finite, or a text contains a lone surrogate.
    :raises TypeError: if an object has no JSON form.
    """
    if type(value) is Encoded:
        return value.text
    file = BytesIO()
    write_in_slices(
        value, lambda piece: file.write(piece if type(piece) is bytes else piece.encode())
    )
    return file.getvalue()  # does not copy


def encode_in_pieces(value: Any) -> tuple[bytes, ...]:
    """Return :func:`encode_in_slices` of a value in pieces, for a writer that sends them in turn.

    The text of an :class:`Encoded` is a piece itself, so that all who write it share it.

    :raises ValueError: if a number is not finite, or a text contains a lone surrogate.
    :raises TypeError: if an object has no JSON form.
    """
    pieces: list[bytes] = []
    short = BytesIO()

    def add(piece: str | bytes) -> None:
        nonlocal short
        data = piece if isinstance(piece, bytes) else piece.encode()
        if len(data) <= SLICE_SIZE:
            short.write(data)
        else:
            pieces.extend((short.getvalue(), data))
            short = BytesIO()

    write_in_slices(value, add)
    pieces.append(short.getvalue())
    return tuple(pieces)


def size_of(value: Any) -> int:
    """Return the length of :func:`dumps` in bytes of UTF-8, without keeping the text in memory."""
    size = 0

    def count(piece: str | bytes) -> None:
        nonlocal size
        size += len(piece if isinstance(piece, bytes) else piece.encode())

    write_in_slices(value, count)
    return size


def text_of(value: Any) -> str:
    """Return :func:`encode_in_slices` as text."""
    return encode_in_slices(value).decode()


def write_in_slices(value: Any, write: Callable[[Any], object]) -> None:
    """Write :func:`dumps` of a value in small pieces.

    :param write: called with each piece: text, or UTF-8 bytes if the piece was already encoded.
    :raises ValueError: if a number is not finite.
    :raises TypeError: if an object has no JSON form.
    """
    if type(value) is Encoded:
        write(value.text)
    elif not is_long(value):
        write(_ENCODE(value))
    elif isinstance(value, str):
        _write_text(value, write)
    elif isinstance(value, Mapping):
        separator = "{"
        for name, part in value.items():
            write(separator)
            if isinstance(name, str):
                _write_text(name, write)
            else:
                write(_ENCODE({name: 0})[1:-3])
            write(":")
            write_in_slices(part, write)
            separator = ","
        write("}")
    elif isinstance(value, (list, tuple)):
        separator = "["
        for part in value:
            write(separator)
            write_in_slices(part, write)
            separator = ","
        write("]")
    else:
        write(_ENCODE(value))


def _write_text(text: str, write: Callable[[Any], object]) -> None:
    if len(text) <= SLICE_SIZE:
        write(_ENCODE(text))
        return
    write('"')
    for start in range(0, len(text), SLICE_SIZE):
        write(_ENCODE(text[start : start + SLICE_SIZE])[1:-1])
    write('"')


_ENCODE_SORTED = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


def canonical(value: Any) -> str:
    """Return JSON text that is equal for equal values, regardless of key order."""
    return _ENCODE_SORTED(value)


def json_copy(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of an object, as it reads after encoding and decoding."""
    copy: dict[str, Any] = json.loads(dumps(value))
    return copy


MAX_NESTING: Final = 500
"""Maximum nesting of a document. Python's own limit depends on its version."""

MAX_STORED_NESTING: Final = 400
"""Maximum nesting of a stored value. Answers, events and pages add levels around it, which must stay
within :data:`MAX_NESTING`."""


MAX_STORED_VALUES: Final = 2**21
"""Maximum number of values in a stored value. Clients read at most 2**23, including separators."""

MAX_STORED_SIZE: Final = 240 * 2**20
"""Maximum size of a stored value in bytes of JSON. Clients read at most 256 MiB."""


def check_readable(value: Any) -> None:
    """Check that :func:`loads` can read :func:`dumps` of a value, also as a part of an answer.

    :param value: a value without reference cycles.
    :raises ValueError: if it is nested deeper than :data:`MAX_STORED_NESTING`, has more than
        :data:`MAX_STORED_VALUES` values, contains an object with two keys that are equal in JSON,
        or contains a number with too many digits.
    """
    if type(value) is Encoded:
        return  # checked when it was encoded
    level = [value]
    depth = count = 0
    while level:
        count += len(level)
        if count > MAX_STORED_VALUES:
            raise ValueError(f"it has more than {MAX_STORED_VALUES:,} values")
        inner: list[Any] = []
        for part in level:
            if isinstance(part, str):
                continue
            if isinstance(part, (Mapping, list, tuple)):
                if depth == MAX_STORED_NESTING:
                    raise ValueError(f"it is nested deeper than {MAX_STORED_NESTING} levels")
                if isinstance(part, Mapping):
                    _check_keys(part)
                    inner += part.values()
                else:
                    inner += part
            elif isinstance(part, int) and has_many_digits(part):
                raise ValueError(f"it contains a number of more than {MAX_DIGITS} digits")
        level = inner
        depth += 1


def _check_keys(value: Mapping[Any, Any]) -> None:
    if all(type(name) is str for name in value):
        return
    # Keys are converted to strings, so that 1 and "1" are equal.
    names = [name if isinstance(name, str) else _ENCODE({name: 0})[2:-4] for name in value]
    if len(set(names)) < len(names):
        duplicate = Counter(names).most_common(1)[0][0]
        raise ValueError(f"it has the key {shown(duplicate)!r} twice")


def loads(
    data: bytes | bytearray,
    *,
    field: str = "body",
    max_values: int | None = None,
    is_last: bool = False,
    decode: Callable[[str], Any] | None = None,
) -> Any:
    """Return the value of a JSON document, in time linear in its length.

    :param field: the name of the document in error messages.
    :param max_values: the maximum number of values, member names included; None for no limit.
    :param is_last: True if the data is not needed afterwards. A ``bytearray`` is then cleared
        before its values are created, to save memory.
    :param decode: what reads the text; None for a strict decoder.
    :raises InvalidRequest: if it is not strict JSON in UTF-8, or has too many values.
    """
    if max_values is not None and has_more_values(data, max_values):
        raise InvalidRequest.of({field: f"contains more than {max_values:,} values"})
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest.of({field: f"is not UTF-8: byte {error.start}"}) from None
    brackets = data.count(b"[") + data.count(b"{")
    if is_last and isinstance(data, bytearray):
        data.clear()
    try:
        value = (decode or _DECODE)(text)
    except _NotStrictError as error:
        raise InvalidRequest.of({field: str(error)}) from None
    except RecursionError:
        raise InvalidRequest.of({field: "is nested too deeply"}) from None
    except ValueError as error:
        raise InvalidRequest.of({field: f"is not JSON: {error}"}) from None
    if brackets > MAX_NESTING and _is_deep(value):
        raise InvalidRequest.of({field: "is nested too deeply"})
    return value


def loads_in_slices(data: bytes, *, field: str, max_values: int) -> Any:
    """Return what :func:`loads` returns. No call of C code takes long, so that other threads go on.

    :raises InvalidRequest: as :func:`loads`, and if a long string has half of a surrogate pair.
    """
    if len(data) <= SLICE_SIZE:
        return loads(data, field=field, max_values=max_values)
    values = strings_kept = 0

    def count_values(part: bytes | bytearray, kind: Literal["string", "other"]) -> None:
        # A part takes many times its bytes in memory. JSON has a separator between two strings.
        nonlocal values, strings_kept
        if kind == "other":
            values += _separators(part)
        else:
            strings_kept += 1
        if values > max_values or strings_kept > max_values + 1:
            raise InvalidRequest.of({field: f"contains more than {max_values:,} values"})

    try:
        skeleton, strings = take_strings(data, check_kept=count_values, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest.of({field: "has a text that is not valid Unicode"}) from None
    except ValueError as error:
        raise InvalidRequest.of({field: f"is not JSON: {error}"}) from None

    def number_or_string(digits: str) -> Any:
        return strings[digits] if digits in strings else float(digits)

    decode = json.JSONDecoder(
        object_pairs_hook=_unique_keys,
        parse_constant=_no_constant,
        parse_int=_integer,
        parse_float=number_or_string,
    ).decode
    return loads(skeleton, field=field, max_values=max_values, decode=decode)


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
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _NotStrictError(f"has the key {shown(name)!r} twice")
            seen.add(name)
    return value


def has_more_values(data: bytes | bytearray, max_values: int) -> bool:
    """Return whether a JSON text has more than ``max_values`` values, without decoding it.

    The number of values determines the cost of decoding. A megabyte of ``[[],[],…`` takes a hundred
    times the time and memory of a megabyte of text.
    """
    if _separators(data) <= max_values:
        return False
    # Ignore separators in strings. Escaped characters are removed, because they cannot end a string.
    bare = data.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > 2 * max_values:
        return True
    return _separators(b"".join(bare.split(b'"')[::2])) > max_values


def _separators(data: bytes | bytearray) -> int:
    return sum(data.count(sign) for sign in (b",", b":", b"[", b"{"))


def _integer(digits: str) -> int:
    # Python's conversion takes quadratic time.
    if len(digits) - digits.startswith("-") > MAX_DIGITS:
        raise _NotStrictError(f"contains a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise _NotStrictError(f"contains {name}, which is not JSON")


_DECODE = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_int=_integer
).decode
