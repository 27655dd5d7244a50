"""JSON as RFC 8259 means it: no NaN, no key twice, no lone surrogates, no bottomless nesting.

Python's own reader accepts all of these; what one reader accepts and the next refuses is how
requests come to mean two things.
"""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from agent_orchestrator.domain.errors import InvalidRequest


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


_ENCODE_SORTED = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


def canonical(value: Any) -> str:
    """Return JSON text that is the same for equal values, whatever the order of their keys."""
    return _ENCODE_SORTED(value)


def json_copy(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that shares nothing with the original, as a reader of the JSON would see it."""
    copy: dict[str, Any] = json.loads(dumps(value))
    return copy


def loads(data: bytes, *, field: str = "body") -> Any:
    """Read one JSON document.

    :param field: what to call the text in the error.
    :raises InvalidRequest: if it is not strict JSON in UTF-8.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest.of({field: f"is not UTF-8: byte {error.start}"}) from None
    try:
        value = _DECODE(text)
    except _NotStrictError as error:
        raise InvalidRequest.of({field: str(error)}) from None
    except RecursionError:
        raise InvalidRequest.of({field: "is nested too deeply"}) from None
    except ValueError as error:
        raise InvalidRequest.of({field: f"is not JSON: {error}"}) from None
    return value


class _NotStrictError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotStrictError(f"has the key {twice!r} twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _NotStrictError(f"holds {name}, which is not JSON")


_DECODE = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode
