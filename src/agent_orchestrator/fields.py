"""Checks of a command's fields, driven by its annotations and the limits beside them.

Every door (HTTP, the embedded client, a test) goes through :func:`problems`, so that the same
mistake gets the same answer: each bad field by name with what is wrong about it.
"""

import functools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

import attrs

from agent_orchestrator.domain.errors import InvalidRequest

MAX_TEXT = 1_000_000
"""Characters in a message (codex 0.169 refuses a prompt of more than 1,048,576)."""

MAX_NAME = 256
"""Characters in a title, a provider's name, an idempotency key."""

MAX_ID = 128
MAX_INTEGER = 2**63 - 1
MAX_DEPTH = 100
"""Generations of children a limit may be set to."""

MAX_TREE = 10_000
"""Sessions of a tree a limit may be set to."""

MAX_METADATA = 65_536
"""Bytes of a metadata object, as JSON."""

MAX_QUESTION = 65_536
"""Characters in the text of a question: people read it, and it is kept in several logs."""

MAX_OPTIONS = 64
"""Answers a question may offer."""

MAX_OPTION = 1_000
"""Characters in each of them."""

Place = Literal["path", "query", "body"]


@attrs.frozen
class Limits:
    """What a value must keep to, beyond its type."""

    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    not_blank: bool = False
    pattern: str | None = None
    doc: str = ""
    item_length: int | None = None
    """Characters in each text of a list."""


def param(
    doc: str,
    *,
    default: Any = attrs.NOTHING,
    minimum: float | None = None,
    maximum: float | None = None,
    max_length: int | None = None,
    not_blank: bool = False,
    pattern: str | None = None,
    item_length: int | None = None,
) -> Any:
    """Declare a field of a command with its limits and a sentence for the documentation."""
    limits = Limits(minimum, maximum, max_length, not_blank, pattern, doc, item_length)
    return attrs.field(default=default, metadata={"limits": limits})


def identifier(doc: str, *, default: Any = attrs.NOTHING) -> Any:
    """Declare a field that holds an identifier."""
    return param(doc, default=default, max_length=MAX_ID, pattern=r"[A-Za-z0-9_-]+")


@attrs.frozen
class FieldSpec:
    """A command's field as the checks, the query parser and the API description see it."""

    name: str
    required: bool
    default: Any
    nullable: bool
    kinds: tuple[type, ...]
    """The types a value may have, None aside: of str, int, float, bool, dict, list."""
    choices: tuple[str, ...]
    item: type | None
    """For a list: the type of its items, a scalar or a class with fields of its own."""
    limits: Limits


@functools.cache
def specs(command: type) -> dict[str, FieldSpec]:
    """Return the fields of a command class by name, in the order they were declared."""
    hints = typing.get_type_hints(command)
    found = {}
    for attribute in attrs.fields(command):
        kinds: list[type] = []
        choices: list[str] = []
        nullable = False
        item: type | None = None
        for part in _parts(hints[attribute.name]):
            origin = typing.get_origin(part)
            if part is types.NoneType:
                nullable = True
            elif origin is Literal:
                kinds.append(str)
                choices.extend(typing.get_args(part))
            elif origin is not None and issubclass(origin, Mapping):
                kinds.append(dict)
            elif origin in (tuple, list):
                kinds.append(list)
                item = typing.get_args(part)[0]
            else:
                kinds.append(part)
        found[attribute.name] = FieldSpec(
            name=attribute.name,
            required=attribute.default is attrs.NOTHING,
            default=attribute.default,
            nullable=nullable,
            kinds=tuple(kinds),
            choices=tuple(choices),
            item=item,
            limits=attribute.metadata.get("limits", Limits()),
        )
    return found


def _parts(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false"} | {
    dict: "an object",
    list: "a list",
}


def problems(command: type, values: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with these values for a command, by field; empty when all is well."""
    fields = specs(command)
    found = {name: "is not a field of this call" for name in values if name not in fields}
    for name, spec in fields.items():
        if name not in values:
            if spec.required:
                found[name] = "is required"
        elif problem := _problem(spec, values[name]):
            found[name] = problem
    return found


def check(kind: type, command: Any) -> None:
    """Do nothing, or refuse a command: at every end of a wire, so that both say the same.

    :raises InvalidRequest: naming every bad field.
    """
    values = {attribute.name: getattr(command, attribute.name) for attribute in attrs.fields(kind)}
    if found := problems(kind, values):
        raise InvalidRequest.of(found)


def _problem(spec: FieldSpec, value: Any) -> str | None:
    if value is None:
        return None if spec.nullable else "must not be null"
    if not _is_a(spec.kinds, value):
        return f"must be {' or '.join(_NAMES[kind] for kind in spec.kinds)}"
    if isinstance(value, str):
        return _text_problem(spec, value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number_problem(spec.limits, value)
    if isinstance(value, Mapping):
        return _object_problem(value, spec.limits.max_length or MAX_METADATA)
    if isinstance(value, (list, tuple)):
        return _list_problem(spec, value)
    return None


def _list_problem(spec: FieldSpec, value: Sequence[Any]) -> str | None:
    most, item = spec.limits.max_length, spec.item
    if most is not None and len(value) > most:
        return f"must have at most {most:,} entries, has {len(value):,}"
    for place, entry in enumerate(value):
        if not isinstance(entry, item or object):
            kind = dict if item is not None and attrs.has(item) else item
            return f"must be a list of {_NAMES[kind or str]} values"
        if isinstance(entry, str) and (problem := _entry_problem(spec, entry)):
            return f"entry {place}: {problem}"
        if item is not None and attrs.has(item):
            inner = {name: getattr(entry, name) for name in specs(item)}
            for name, problem in problems(item, inner).items():
                return f"entry {place}: {name} {problem}"
    return None


def _entry_problem(spec: FieldSpec, entry: str) -> str | None:
    most = spec.limits.item_length or MAX_NAME
    if len(entry) > most:
        return f"must be at most {most:,} characters, is {len(entry):,}"
    return encoding_problem(entry)


def _is_a(kinds: tuple[type, ...], value: Any) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int):
        return int in kinds or float in kinds
    if isinstance(value, tuple):
        return list in kinds
    if isinstance(value, Mapping):
        return dict in kinds
    return isinstance(value, kinds)


def _text_problem(spec: FieldSpec, value: str) -> str | None:
    limits = spec.limits
    if spec.choices and value not in spec.choices:
        return f"must be one of {', '.join(spec.choices)}"
    if limits.max_length is not None and len(value) > limits.max_length:
        return f"must be at most {limits.max_length:,} characters, is {len(value):,}"
    if limits.not_blank and not value.strip():
        return "must not be blank"
    if limits.pattern is not None and not re.fullmatch(limits.pattern, value):
        return f"must match {limits.pattern}"
    return encoding_problem(value)


def encoding_problem(value: str) -> str | None:
    """Tell what keeps a text from being stored: a half of a surrogate pair is not a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"is not valid Unicode: lone surrogate at character {error.start}"
    return None


def _number_problem(limits: Limits, value: float) -> str | None:
    if not math.isfinite(value):
        return "must be a finite number"
    minimum = limits.minimum if limits.minimum is not None else -MAX_INTEGER
    maximum = limits.maximum if limits.maximum is not None else MAX_INTEGER
    if not minimum <= value <= maximum:
        return f"must be between {_plain(minimum)} and {_plain(maximum)}"
    return None


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) else f"{number:g}"


_MAX_DEPTH = 64


def _object_problem(value: Mapping[str, Any], budget: int) -> str | None:
    size = 0
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        entry, depth = pending.pop()
        size += 2
        if depth > _MAX_DEPTH:
            return f"must not be nested deeper than {_MAX_DEPTH}"
        if isinstance(entry, str):
            if problem := encoding_problem(entry):
                return f"holds text that {problem}"
            size += len(entry.encode())
        elif isinstance(entry, Mapping):
            if not all(isinstance(key, str) for key in entry):
                return "must have text keys only"
            pending += [(part, depth + 1) for pair in entry.items() for part in pair]
        elif isinstance(entry, (list, tuple)):
            pending += [(part, depth + 1) for part in entry]
        elif isinstance(entry, float) and (problem := _number_problem(Limits(), entry)):
            return f"holds a number that {problem}"
        elif isinstance(entry, int):
            size += entry.bit_length() // 3  # at most one digit more than it has
        elif entry is not None and not isinstance(entry, float):
            return f"holds a {type(entry).__name__}, which JSON cannot say"
        if size > budget:
            return f"must be at most {budget:,} bytes"
    return None
