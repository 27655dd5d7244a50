"""JSON as RFC 8259 means it: no NaN, no key twice, no lone surrogates, no bottomless nesting.

Python's own reader accepts all of these; what one reader accepts and the next refuses is how
requests come to mean two things.
"""

import json
from typing import Any, NoReturn

from agent_orchestrator.domain.errors import InvalidRequest

_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dumps(value: Any) -> str:
    """Return compact JSON text, non-ASCII characters as themselves.

    :raises ValueError: if a number is not finite.
    :raises TypeError: if JSON cannot say the value.
    """
    return _ENCODE(value)


def canonical(value: Any) -> str:
    """Return JSON text that is the same for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


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
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
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
