"""Checks a provider's options against the fields of the runner's class. Unknown options are errors, and
values are not converted.
"""

import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs

Problems = dict[str, str]
"""Problems by their location in the configuration."""

_NAMES: Final = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}


def arguments(
    cls: type,
    options: Mapping[str, Any],
    location: str,
    problems: Problems,
    *,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Return the arguments for an attrs class.

    Lists become tuples, and tables become the attrs classes of the fields. ``metadata={"option":
    type}`` of a field gives its option another type.

    :param location: the location of the options in the configuration, for errors.
    :param problems: problems are added here.
    :param without: fields that are not options.
    """
    hints = get_type_hints(cls)
    fields = {
        str(entry.alias): entry
        for entry in attrs.fields(cls)
        if entry.init and entry.alias not in without
    }
    for option in options:
        if option not in fields:
            problems[f"{location}.{option}"] = f"is not one of {', '.join(sorted(fields)) or 'any'}"
    checked = {}
    for option, entry in fields.items():
        if option in options:
            hint = entry.metadata.get("option", hints[entry.name])
            checked[option] = _checked(options[option], hint, f"{location}.{option}", problems)
        elif entry.default is attrs.NOTHING:
            problems[f"{location}.{option}"] = "is required"
    return checked


def _checked(value: Any, hint: Any, location: str, problems: Problems) -> Any:
    kind = get_origin(hint) or hint
    parts = get_args(hint)
    if kind in (Union, types.UnionType):
        return _one_of(value, parts, location, problems)
    if kind is Literal:
        if value not in parts:
            problems[location] = f"must be one of {', '.join(map(str, parts))}"
    elif isinstance(kind, type) and attrs.has(kind):
        if isinstance(value, Mapping):
            before = len(problems)
            values = arguments(kind, value, location, problems)
            return kind(**values) if len(problems) == before else None
        problems[location] = "must be a table"
    elif kind in (tuple, list, Sequence):
        if isinstance(value, (list, tuple)):
            return tuple(
                _checked(entry, parts[0], f"{location}[{index}]", problems)
                for index, entry in enumerate(value)
            )
        problems[location] = "must be a list"
    elif kind in (dict, Mapping):
        if isinstance(value, Mapping):
            hint = parts[1] if parts else Any
            return {
                key: _checked(entry, hint, f"{location}.{key}", problems)
                for key, entry in value.items()
            }
        problems[location] = "must be a table"
    elif kind is float and type(value) is int:
        return float(value)
    elif kind in _NAMES and type(value) is not kind:
        problems[location] = f"must be {_NAMES[kind]}"
    return value


def _one_of(value: Any, parts: Sequence[Any], location: str, problems: Problems) -> Any:
    if value is None and types.NoneType in parts:
        return None
    tries: list[Problems] = []
    for part in parts:
        if part is not types.NoneType:
            faults: Problems = {}
            checked = _checked(value, part, location, faults)
            if not faults:
                return checked
            tries.append(faults)
    problems.update(tries[0])
    return None
