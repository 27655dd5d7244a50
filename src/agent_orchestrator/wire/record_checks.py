"""Checks of untrusted JSON against a class of the model, with each bad field by its path."""

import functools
import re
import types
import typing
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import attrs

from agent_orchestrator.domain.model import Option
from agent_orchestrator.fields import (
    ID_PATTERN,
    MAX_ID,
    MAX_INTEGER,
    MAX_METADATA,
    MAX_NAME,
    MAX_PATH,
    encoding_problem,
    object_problem,
    shown,
)
from agent_orchestrator.wire import codec, strict_json

Problem = tuple[str, str]
"""The path of a field, and what is wrong with it."""

_WITHOUT_NUL: Final = frozenset({"cwd", "thread_id"})
_LENGTHS: Final = {"cwd": MAX_PATH, "thread_id": 1_024, "stderr_tail": 2**20}
_TEXTS: Final = frozenset(
    {"text", "answer", "message", "label", "reaches", "last_line", "cancel_reason", "option"}
)
"""Fields with texts of any length. Other texts are names."""

IDS: Final = frozenset(
    {
        "id",
        "session_id",
        "parent_session_id",
        "root_session_id",
        "run_id",
        "parent_run_id",
        "own_run_id",
        "message_id",
        "request_id",
    }
)
"""Fields with ids of this program. A runner, a host or another program makes the others."""

_ID: Final = re.compile(ID_PATTERN)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")


def record_problem(kind: type, plain: Any, path: str = "") -> Problem | None:
    """Return what keeps a JSON value from being an object of a class; None if nothing does.

    A field may be missing if it has a default.
    """
    if not isinstance(plain, dict):
        return path, "must be an object"
    hints, needed = _fields(kind)
    prefix = f"{path}." if path else ""
    for name in plain:
        if name not in hints:
            return prefix + shown(name), "is not a field of this version of the format"
    for name, hint in hints.items():
        if name not in plain:
            if name in needed:
                return prefix + name, "is required"
        else:
            # The id of an option is a text of an agent.
            field = "option" if kind is Option and name == "id" else name
            if found := value_problem(hint, field, plain[name], prefix + name):
                return found
    return None


@functools.cache
def _fields(kind: type) -> tuple[dict[str, Any], frozenset[str]]:
    hints = typing.get_type_hints(kind)
    names = attrs.fields(kind)
    needed = frozenset(one.name for one in names if one.default is attrs.NOTHING)
    return {one.name: hints[one.name] for one in names}, needed


def value_problem(hint: Any, name: str, value: Any, path: str) -> Problem | None:
    """Return what is wrong with the value of a field.

    :param hint: the annotation of the field.
    :param name: of the field: it tells ids, names and texts apart.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [one for one in typing.get_args(hint) if one is not types.NoneType]
        if value is None:
            return None
        return value_problem(kinds[0], name, value, path)
    if origin is tuple:
        if not isinstance(value, list):
            return path, "must be a list"
        item = typing.get_args(hint)[0]
        found = (value_problem(item, name, one, f"{path}[{n}]") for n, one in enumerate(value))
        return next(filter(None, found), None)
    if attrs.has(hint):
        return record_problem(hint, value, path)
    problem = _leaf_problem(hint, origin, name, value)
    return (path, problem) if problem else None


def _leaf_problem(hint: Any, origin: Any, name: str, value: Any) -> str | None:
    if origin is typing.Literal or (isinstance(hint, type) and issubclass(hint, StrEnum)):
        known = typing.get_args(hint) if origin is typing.Literal else [str(one) for one in hint]
        return None if value in known else f"must be one of {', '.join(known)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _object_problem(name, value)
    if hint is bool:
        return None if isinstance(value, bool) else "must be true or false"
    if hint in (int, float):
        return _number_problem(hint, value)
    if not isinstance(value, str):
        return "must be a string"
    if hint is datetime:
        return None if is_time(value) else "must be a time, such as 2026-01-31T12:00:00Z"
    return text_problem(name, value)


def is_time(text: str) -> bool:
    """Return whether a text is a time with its offset, which UTC can express."""
    if not _TIME.fullmatch(text):
        return False
    try:
        codec.format_time(codec.parse_time(text))
    except (ValueError, OverflowError):
        return False
    return True


def _number_problem(hint: Any, value: Any) -> str | None:
    kinds = (int, float) if hint is float else int
    if isinstance(value, bool) or not isinstance(value, kinds):
        return "must be a number"
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        return f"must be between {-MAX_INTEGER:,} and {MAX_INTEGER:,}"
    return None


def _object_problem(name: str, value: Any) -> str | None:
    if not isinstance(value, dict):
        return "must be an object"
    if name == "metadata":
        return object_problem(value, MAX_METADATA)  # as the API: escapes do not count
    try:
        strict_json.check_readable(value)
        size = strict_json.size_of(value)
    except UnicodeEncodeError:
        return "has a text that is not valid Unicode"
    except (ValueError, RecursionError) as error:
        return str(error)
    limit = strict_json.MAX_STORED_SIZE
    return f"must be at most {limit:,} bytes" if size > limit else None


def text_problem(name: str, value: str) -> str | None:
    """Return what is wrong with a text; see :func:`value_problem`."""
    if name in IDS:
        if len(value) > MAX_ID or not _ID.fullmatch(value):
            return f"must be an id: 1 to {MAX_ID} characters that match {ID_PATTERN}"
        return None
    if "\0" in value and name in _WITHOUT_NUL:
        return "must not contain NUL"
    limit = _LENGTHS.get(name, MAX_NAME)
    if name not in _TEXTS and len(value) > limit:
        return f"must be at most {limit:,} characters, is {len(value):,}"
    return encoding_problem(value)
