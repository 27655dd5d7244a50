"""Conversion between objects and JSON values, and between commands and HTTP requests.

Commands are read strictly: every invalid field is named. Answers are read leniently, because a daemon
may be newer or older than its client. Unknown fields are ignored, unknown enumeration values stay
strings, and missing fields get an empty value.
"""

import contextlib
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import quote

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.model import Event, Option, Request
from agent_orchestrator.fields import FieldSpec, problems, specs
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.wire import strict_json
from agent_orchestrator.wire.encoded import Encoded

T = TypeVar("T")


@functools.lru_cache(maxsize=64)
def format_time(moment: datetime) -> str:
    """Return a time as RFC 3339 in UTC with microseconds. The texts sort like the times."""
    # Cached, as a change writes its time into several rows and events.
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    # Four times as fast as strftime, which matters for every answer.
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


def parse_time(text: str) -> datetime:
    """Return the time in an RFC 3339 text.

    :raises ValueError: if the text is not RFC 3339.
    """
    return datetime.fromisoformat(text)


def deadline_key(request: Request) -> str:
    """Return the place of a request in the order of deadlines: the time of its end, and its id."""
    return f"{format_time(request.expires_at)}/{request.id}"


_UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)


def _is_mapping(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=False)
    converter.register_unstructure_hook(datetime, format_time)
    converter.register_structure_hook(datetime, lambda text, _: parse_time(text))
    # Free-form JSON objects are passed on without a copy, which would dominate the cost of an event.
    converter.register_unstructure_hook_func(_is_mapping, lambda value: value)
    converter.register_structure_hook_func(_is_mapping, lambda value, _: value)
    converter.register_unstructure_hook(types.NoneType, lambda value: value)
    # Enumeration values of a newer daemon stay strings.
    converter.register_structure_hook(StrEnum, _literal_value)
    converter.register_unstructure_hook(StrEnum, str)
    converter.register_structure_hook_func(_is_literal, _literal_value)
    converter.register_structure_hook_factory(
        attrs.has, lambda kind: _lenient_reader(kind, make_dict_structure_fn(kind, converter))
    )
    read_option = converter.get_structure_hook(Option)
    # The options of an older daemon are texts.
    converter.register_structure_hook(
        Option,
        lambda plain, kind: (
            Option.named(plain) if isinstance(plain, str) else read_option(plain, kind)
        ),
    )
    return converter


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _literal_value(text: Any, hint: Any) -> Any:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is not a word")
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        with contextlib.suppress(ValueError):
            return hint(text)
    return text


def _lenient_reader(kind: type, strict: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a reader of objects that may lack fields. At least one known field must be present."""

    def read(plain: Any, _: Any) -> Any:
        try:
            return strict(plain, kind)
        except KeyError:
            known = {attribute.name for attribute in attrs.fields(kind)}
            if not isinstance(plain, Mapping) or known.isdisjoint(plain):
                raise
            return strict({**_null_value(kind), **plain}, kind)

    return read


@functools.cache
def _required(kind: type) -> dict[str, Any]:
    """Return the types of the fields without a default, by name."""
    hints = typing.get_type_hints(kind)
    fields = attrs.fields(kind)
    return {
        attribute.name: hints[attribute.name]
        for attribute in fields
        if attribute.default is attrs.NOTHING
    }


def _null_value(hint: Any) -> Any:
    """Return the JSON value for a missing field: null if it is optional, else an empty value."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = typing.get_args(hint)
        return None if types.NoneType in parts else _null_value(parts[0])
    if attrs.has(hint):
        return {name: _null_value(inner) for name, inner in _required(hint).items()}
    if hint is datetime:
        return format_time(_UNKNOWN_TIME)
    if _is_mapping(hint):
        return {}
    if _is_literal(hint) or (origin is None and issubclass(hint, StrEnum)):
        return ""
    return (origin or hint)()


_converter = _make_converter()


def to_plain(value: Any) -> Any:
    """Return the JSON value of an object."""
    return _converter.unstructure(value)


def from_plain(kind: type[T], plain: Any) -> T:
    """Return the object that a JSON value represents.

    :raises ValueError: if it does not represent an object of that class.
    """
    try:
        return _converter.structure(plain, kind)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a valid {kind.__name__}: {error!r}") from error
    except RecursionError:
        raise ValueError(f"not a valid {kind.__name__}: it is nested too deeply") from None


def to_json(value: Any) -> str:
    """Return an object as compact JSON text."""
    return strict_json.dumps(to_plain(value))


def event_to_json(event: Event) -> tuple[bytes, ...]:
    """Return an event as JSON in UTF-8: one piece, or three if its data is already encoded."""
    data = event.data
    created_at = format_time(event.created_at)
    fields = {
        "seq": event.seq,
        "session_id": event.session_id,
        "run_id": event.run_id,
        "attempt": event.attempt,
        "event_type": event.event_type,
    }
    if isinstance(data, Encoded):
        head = strict_json.dumps(fields)
        return (
            f'{head[:-1]},"data":'.encode(),
            data.text,
            f',"created_at":"{created_at}"}}'.encode(),
        )
    return (strict_json.dumps({**fields, "data": data, "created_at": created_at}).encode(),)


def command(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return a command with untrusted values. The values themselves are checked when it is executed.

    :raises InvalidRequest: if a field is missing or unknown. Names every invalid field.
    """
    if aliases := _aliases(kind):  # type: ignore[arg-type]  # a class is hashable
        values = _by_own_names(kind, values, aliases)
    required, known = _names(kind)  # type: ignore[arg-type]
    if not required <= values.keys() <= known:
        raise InvalidRequest.of(problems(kind, values))
    if nested := _nested(kind):  # type: ignore[arg-type]
        values = dict(values)
        for name in nested.keys() & values.keys():
            values[name] = _items(nested[name], name, values[name])
    return kind(**values)


@functools.cache
def _aliases(kind: type) -> dict[str, str]:
    """Return the names of fields that have an alias, by alias."""
    names = {spec.limits.alias: name for name, spec in specs(kind).items()}
    return {alias: name for alias, name in names.items() if alias is not None}


def _by_own_names(
    kind: type, values: Mapping[str, Any], aliases: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return the values by field name, with aliases replaced.

    :raises InvalidRequest: if a field is invalid, under the name it was given by, or if both of
        its names are given.
    """
    if doubled := {alias for alias, name in aliases.items() if {alias, name} <= values.keys()}:
        raise InvalidRequest.of(
            {
                alias: f"must not be given together with {aliases[alias]}"
                for alias in sorted(doubled)
            }
        )
    used_aliases = {name: alias for alias, name in aliases.items() if alias in values}
    values = {aliases.get(name, name): value for name, value in values.items()}
    if used_aliases and used_aliases.keys() & (field_problems := problems(kind, values)).keys():
        raise InvalidRequest.of(
            {used_aliases.get(name, name): problem for name, problem in field_problems.items()}
        )
    return values


@functools.cache
def _nested(kind: type) -> dict[str, type]:
    """Return the item classes of fields that are lists of objects, by field name."""
    items = {name: spec.item for name, spec in specs(kind).items()}
    return {name: item for name, item in items.items() if item is not None and attrs.has(item)}


def _items(item: type, name: str, values: Any) -> Any:
    """Return a list with its objects. An invalid value is returned unchanged, for the later check."""
    if not isinstance(values, list):
        return values
    objects = []
    for index, entry in enumerate(values):
        if not isinstance(entry, dict):
            objects.append(entry)
            continue
        required, known = _names(item)
        if not required <= entry.keys() <= known:
            [(inner, problem), *_] = problems(item, entry).items()
            raise InvalidRequest.of({f"{name}[{index}].{inner}": problem})
        objects.append(item(**entry))
    return tuple(objects)


@functools.cache
def _names(kind: type) -> tuple[frozenset[str], frozenset[str]]:
    fields = specs(kind)
    return frozenset(name for name, spec in fields.items() if spec.required), frozenset(fields)


def query_values(kind: type, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the values of a command's fields in a query string.

    A text that cannot be converted to its field's type stays text, for the later check.

    :raises InvalidRequest: if a field that is not a list is given twice.
    """
    fields = specs(kind)
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name in fields and list in fields[name].kinds:
            values[name] = (*values.get(name, ()), text)
            continue
        if name in values:
            raise InvalidRequest.of({name: "is given twice"})
        values[name] = _query_value(fields[name], text) if name in fields else text
    return values


_INTEGER = re.compile(r"-?[0-9]{1,40}")
_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")


def _query_value(spec: FieldSpec, text: str) -> Any:
    if int in spec.kinds and _INTEGER.fullmatch(text):
        return int(text)
    if float in spec.kinds and _NUMBER.fullmatch(text):
        return float(text)
    if bool in spec.kinds and text in ("true", "false"):
        return text == "true"
    return text


def request_parts(
    operation: Operation[Any, Any], request: Any
) -> tuple[str, tuple[tuple[str, str], ...], dict[str, Any] | None]:
    """Return the path, query and JSON body of a command, without fields that have their default."""
    values = explicit_values(request, keep=operation.path_fields)
    path = operation.path
    for name in operation.path_fields:
        path = path.replace(f"{{{name}}}", quote(str(values.pop(name)), safe=""))
    if not operation.has_query:
        return path, (), values
    query = tuple(
        (name, _query_text(item))
        for name, value in values.items()
        for item in (value if isinstance(value, (list, tuple)) else [value])
    )
    return path, query, None


def explicit_values(request: Any, *, keep: Sequence[str] = ()) -> dict[str, Any]:
    """Return a command's values that differ from the defaults, and the values of ``keep``."""
    values = {
        name: value
        for name, default in _defaults(request.__class__).items()
        if (value := getattr(request, name)) != default or name in keep
    }
    for name in _nested(request.__class__):
        if name in values:
            values[name] = to_plain(values[name])
    return values


@functools.cache
def _defaults(kind: type) -> dict[str, Any]:
    return {name: _default(spec.default) for name, spec in specs(kind).items()}


def _default(default: Any) -> Any:
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


def _query_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
