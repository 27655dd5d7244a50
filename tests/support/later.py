"""Answers as a daemon of another version gives them: made of the types of the table of calls."""

import types
import typing
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import attrs

LATER = "word_that_came_later"


def sample(hint: Any, *, word: str | None = None, depth: int = 0) -> Any:
    """Return a JSON value of a type, with everything in it that may be.

    :param word: what to say where there are only so many words; one of them without it.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return sample(
            next(one for one in parts if one is not types.NoneType), word=word, depth=depth
        )
    if origin is typing.Literal:
        return word or parts[0]
    if origin is tuple:
        return [sample(parts[0], word=word, depth=depth + 1)] if depth < 6 else []
    if attrs.has(hint):
        hints = typing.get_type_hints(hint)
        found = {
            one.name: sample(hints[one.name], word=word, depth=depth + 1)
            for one in attrs.fields(hint)
        }
        return found | ({"came_later": {"a": [1]}} if word else {})
    if origin is not None and issubclass(origin, Mapping):
        return {"key": "value"}
    if issubclass(hint, StrEnum):
        return word or next(iter(hint)).value
    if hint is datetime:
        return "2026-01-02T03:04:05.000006Z"
    values: dict[type, Any] = {str: "text", int: 7, float: 0.5, bool: True}
    return values[hint]


def without_one(plain: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return the value again and again, each time without one of its fields, at all depths."""
    if isinstance(plain, list):
        for place, entry in enumerate(plain):
            for where, less in without_one(entry, f"{path}[{place}]"):
                yield where, [*plain[:place], less, *plain[place + 1 :]]
    elif isinstance(plain, dict):
        for name, entry in plain.items():
            if len(plain) > 1:
                yield f"{path}.{name}", {key: one for key, one in plain.items() if key != name}
            for where, less in without_one(entry, f"{path}.{name}"):
                yield where, plain | {name: less}
