"""Declaration of fields, and the checks of their annotations and limits.

A field is declared once, in a class marked with :func:`command`. Classes that share fields inherit
them. The HTTP routes, the API description, the client's methods, the tools of agents and the options
of ``agentctl`` are made from :func:`specs`. All of them check with :func:`problems`, so that the same
mistake gets the same error, with each bad field by name.
"""

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import (
    Any,
    Concatenate,
    Final,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
)

import attrs

from agent_orchestrator.domain.errors import ConfigError, InvalidRequest

MAX_TEXT = 1_000_000
"""Maximum number of characters of a message. An agent may take less (`Capabilities.max_input`)."""

MAX_NAME = 256
"""Maximum number of characters of a title, a provider's name or an idempotency key."""

MAX_ID = 128
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*"
"""An id never begins with ``-``, because programs would take it for an option."""

MAX_PATH = 4096
PATH_PATTERN = r"/[^\0]*"
"""An absolute path on the daemon's machine."""

MAX_HOST = 64
HOST_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""The name of a host."""

MAX_LABELS = 32
"""Maximum number of labels of a host, and of those asked for."""

MAX_INTEGER = 2**63 - 1
MAX_TREE_DEPTH = 100
"""Largest value of a depth limit."""

MAX_TREE_SIZE = 10_000
"""Largest value of a limit on the sessions of a tree."""

MAX_RETAIN_DAYS = 36_500
MAX_RETAIN_EVENTS = 10**12
MAX_RETAIN_BYTES = 10**15
"""Largest values of the limits on what is kept of a session's log."""

MAX_METADATA = 65_536
"""Maximum size of a metadata object, in bytes of JSON."""

MAX_QUESTION = 65_536
"""Maximum number of characters of a question: people read it, and several logs contain it."""

MAX_OPTIONS = 64
"""Maximum number of options of a question."""

_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]"
QUIET_HOURS = f"{_TIME}-{_TIME}"
"""Two times of the day, such as ``22:00-07:00``."""

MAX_OPTION = 1_000
"""Maximum number of characters of an option's id or label."""

MAX_REACHES = 2_000
"""Maximum number of characters of the description of what an option allows."""

MAX_DIGITS = 100
"""Maximum number of digits of an integer within an object."""

MAX_NAMED_PROBLEMS = 20
"""Maximum number of unknown fields that an error names."""

MAX_SHOWN_NAME = 100
"""Maximum number of characters of an unknown name that an error shows."""

Place = Literal["path", "query", "body"]


@attrs.frozen
class Limits:
    """The constraints of a field beyond its type, and its descriptions."""

    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    not_blank: bool = False
    pattern: str | None = None
    doc: str = ""
    items: "Mapping[str, Limits]" = attrs.field(factory=dict)
    """For a list of objects: the constraints of their fields, where the class does not declare them."""
    alias: str | None = None
    """Another name of the field in requests."""
    tool_doc: str | None = None
    """The description for agents, if it differs from ``doc``."""
    for_agents: bool = True
    """Whether the tools of agents have the field."""
    flag: str | None = None
    """Its option of ``agentctl``, if that is not the name with hyphens."""


def param(
    doc: str,
    *,
    default: Any,
    kw_only: bool = True,
    converter: Callable[[Any], Any] | None = None,
    **limits: Any,
) -> Any:
    """Declare an optional field.

    :param doc: its description, one sentence.
    :param limits: fields of :class:`Limits`.
    """
    metadata = {"limits": Limits(doc=doc, **limits)}
    return attrs.field(default=default, kw_only=kw_only, converter=converter, metadata=metadata)


def positional(doc: str, *, default: Any, kw_only: Literal[False], **limits: Any) -> Any:
    """Declare an optional field that may also be given by its position."""
    return param(doc, default=default, kw_only=kw_only, **limits)


def runner_option(doc: str, *, default: Any, **limits: Any) -> Any:
    """Declare an option of a runner. Creating a runner with an invalid value raises ``ConfigError``.

    :param limits: fields of :class:`Limits`.
    """
    metadata = {"limits": Limits(doc=doc, **limits)}
    return attrs.field(default=default, validator=_check_option, metadata=metadata)


def _check_option(runner: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    """Raise :exc:`ConfigError` with the option's name if the value is invalid."""
    known = specs(type(runner))  # type: ignore[arg-type]  # a class is hashable
    if problem := problem_of(known[attribute.name], value):
        raise ConfigError(f"{attribute.name}: {problem}")


def required(doc: str, *, kw_only: bool = True, **limits: Any) -> Any:
    """Declare a required field."""
    return attrs.field(kw_only=kw_only, metadata={"limits": Limits(doc=doc, **limits)})


def identifier(doc: str, *, kw_only: bool = True) -> Any:
    """Declare a required field that holds an identifier."""
    return required(doc, kw_only=kw_only, max_length=MAX_ID, pattern=ID_PATTERN)


def optional_name(doc: str, **limits: Any) -> Any:
    """Declare an optional field that holds a short text."""
    return param(doc, default=None, max_length=MAX_NAME, not_blank=True, **limits)


def optional_path(doc: str) -> Any:
    """Declare an optional field that holds an absolute path on the daemon's machine."""
    return param(doc, default=None, max_length=MAX_PATH, not_blank=True, pattern=PATH_PATTERN)


def optional_host(doc: str, *, tool_doc: str | None = None) -> Any:
    """Declare an optional field for the name of a host.

    :param tool_doc: its description for agents. None if it is for people only.
    """
    return param(
        doc,
        default=None,
        max_length=MAX_HOST,
        pattern=HOST_PATTERN,
        for_agents=tool_doc is not None,
        tool_doc=tool_doc,
    )


def optional_identifier(doc: str) -> Any:
    """Declare an optional field that holds an identifier."""
    return param(doc, default=None, max_length=MAX_ID, pattern=ID_PATTERN)


T = TypeVar("T")


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(required, identifier, positional)
)
def command(kind: type[T]) -> type[T]:
    """Class decorator: make a frozen class of declared fields. Collections become tuples.

    A class may inherit from several such classes. The fields of the last come first.
    """
    # Multiple inheritance does not work with slots.
    return attrs.frozen(slots=False, field_transformer=_with_tuples)(kind)


def _with_tuples(_: type, fields: list["attrs.Attribute[Any]"]) -> list["attrs.Attribute[Any]"]:
    return [
        attribute.evolve(converter=_as_tuple)
        if attribute.converter is None and any(_is_list(part) for part in _parts(attribute.type))
        else attribute
        for attribute in fields
    ]


def _as_tuple(value: Any) -> Any:
    is_collection = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    return tuple(value) if is_collection else value


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) in (tuple, list, Sequence, Collection)


def shared(kind: type[T], source: Any, **more: Any) -> T:
    """Return an object of ``kind`` with the fields that it shares with ``source``, and those of ``more``."""
    names = specs(kind).keys() & specs(type(source)).keys()  # type: ignore[arg-type]  # see specs
    return kind(**{name: getattr(source, name) for name in names} | more)


def values_of(kind: type, source: Any) -> dict[str, Any]:
    """Return the object's values for the fields of a class."""
    return {name: getattr(source, name) for name in specs(kind)}


P = ParamSpec("P")
Owner = TypeVar("Owner")
Result = TypeVar("Result")
_Method = Callable[Concatenate[Owner, P], Coroutine[Any, Any, Result]]


def takes(
    kind: Callable[P, T],
) -> Callable[[Callable[[Owner, T], Coroutine[Any, Any, Result]]], _Method[Owner, P, Result]]:
    """Give a method the fields of a class as its parameters.

    The method itself has one parameter: an object of the class. Type checkers, ``help()`` and
    ``inspect.signature`` see the fields. A field is also accepted under its alias.
    """
    aliases = {spec.limits.alias: name for name, spec in specs(cast("type", kind)).items()}

    def decorate(
        method: Callable[[Owner, T], Coroutine[Any, Any, Result]],
    ) -> _Method[Owner, P, Result]:
        @functools.wraps(method)
        async def call(self: Owner, *args: P.args, **kwargs: P.kwargs) -> Result:
            named: Any = {aliases.get(name, name): value for name, value in kwargs.items()}
            return await method(self, kind(*args, **named))

        self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        hints = typing.get_type_hints(kind)
        fields = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(kind).parameters.values()
        ]
        described = inspect.signature(method).replace(parameters=[self_parameter, *fields])
        call.__signature__ = described  # type: ignore[attr-defined]
        call.__doc__ = _described(method.__doc__ or "", cast("type", kind))
        return cast("_Method[Owner, P, Result]", call)

    return decorate


def _described(doc: str, kind: type) -> str:
    """Return a docstring with a line for each field that it does not describe."""
    lines = [
        f":param {name}: {spec.limits.doc}"
        for name, spec in specs(kind).items()
        if spec.limits.doc and f":param {name}:" not in doc
    ]
    text, separator, raised = inspect.cleandoc(doc).partition("\n:raises ")
    has_list = text.rpartition("\n\n")[2].startswith(":param ")
    return "\n".join([text, *([] if has_list else [""]), *lines]) + separator + raised


@attrs.frozen
class FieldSpec:
    """The type and the limits of a command's field."""

    name: str
    required: bool
    default: Any
    nullable: bool
    kinds: tuple[type, ...]
    """The types of a value except None: some of str, int, float, bool, dict, list."""
    choices: tuple[str, ...]
    item: type | None
    """For a list: the type of its items, a scalar or an attrs class."""
    limits: Limits
    or_text: bool = False
    """For a list of objects: whether an item may also be a string."""

    @property
    def fields(self) -> "dict[str, FieldSpec]":
        """The fields of the objects in a list."""
        limits = self.limits.items
        return {
            name: attrs.evolve(field, limits=limits[name]) if name in limits else field
            for name, field in specs(self.item).items()
        }


@functools.cache
def specs(command: type) -> dict[str, FieldSpec]:
    """Return the fields of a class by name: positional ones, then its own, then inherited ones."""
    hints = typing.get_type_hints(command)
    result = {}
    for attribute in sorted(attrs.fields(command), key=_order(command)):
        kinds: list[type] = []
        choices: list[str] = []
        nullable = False
        item: type | None = None
        or_text = False
        for part in _parts(hints[attribute.name]):
            origin = typing.get_origin(part)
            if part is types.NoneType:
                nullable = True
            elif origin is Literal:
                kinds.append(str)
                choices.extend(typing.get_args(part))
            elif _is_list(part):
                kinds.append(list)
                item, *others = _parts(typing.get_args(part)[0])
                or_text = str in others
            elif origin is not None and issubclass(origin, Mapping):
                kinds.append(dict)
            else:
                kinds.append(part)
        result[attribute.name] = FieldSpec(
            name=attribute.name,
            required=attribute.default is attrs.NOTHING,
            default=attribute.default,
            nullable=nullable,
            kinds=tuple(kinds),
            choices=tuple(choices),
            item=item,
            limits=_limits(attribute, hints),
            or_text=or_text,
        )
    return result


def _order(command: type) -> Callable[["attrs.Attribute[Any]"], tuple[bool, int]]:
    declared: dict[str, int] = {}
    for kind in command.__mro__:
        for name in vars(kind).get("__annotations__", ()):
            declared.setdefault(name, len(declared))

    def order(attribute: "attrs.Attribute[Any]") -> tuple[bool, int]:
        return (True, declared[attribute.name]) if attribute.kw_only else (False, 0)

    return order


def _limits(attribute: "attrs.Attribute[Any]", others: Mapping[str, Any]) -> Limits:
    """Return the limits of a field, without an alias that is the name of another field."""
    limits: Limits = attribute.metadata.get("limits", Limits())
    return attrs.evolve(limits, alias=None) if limits.alias in others else limits


def _parts(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"} | {
    dict: "an object",
    list: "a list",
}


NOT_A_FIELD: Final = "is not a field of this call"


def problems(command: type, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the problems of a command's values by field; empty if there are none.

    An entry of a list or an object is named by its path: ``options[0]``, ``metadata.key``.
    """
    return _problems(specs(command), values)


def _problems(fields: Mapping[str, FieldSpec], values: Mapping[str, Any]) -> dict[str, str]:
    result = _unknown([name for name in values if name not in fields])
    for name, spec in fields.items():
        if name not in values:
            if spec.required:
                result[name] = "is required"
        elif problem := _problem(spec, values[name]):
            path, message = problem
            result[name + path] = message
    return result


def _unknown(names: Sequence[str]) -> dict[str, str]:
    result = {shown(name): NOT_A_FIELD for name in names[:MAX_NAMED_PROBLEMS]}
    if more := names[MAX_NAMED_PROBLEMS:]:
        result[shown(more[0])] = f"{NOT_A_FIELD}, nor are {len(more) - 1:,} others"
    return result


def shown(name: str) -> str:
    """Return a caller's name for use in an error: cut, and valid Unicode."""
    short = name if len(name) <= MAX_SHOWN_NAME else f"{name[:MAX_SHOWN_NAME]}…"
    return short.encode(errors="backslashreplace").decode()


def check(kind: type, command: Any) -> None:
    """Raise ``InvalidRequest`` with every bad field of a command, if there is one.

    Client and server both call this, so that they refuse the same.
    """
    values = {attribute.name: getattr(command, attribute.name) for attribute in attrs.fields(kind)}
    if field_problems := problems(kind, values):
        raise InvalidRequest.of(field_problems)


def problem_of(spec: FieldSpec, value: Any) -> str | None:
    """Return the problem of a field's value; None if there is none."""
    problem = _problem(spec, value)
    return None if problem is None else f"{problem[0]} {problem[1]}".strip()


_Problem = tuple[str, str]
"""The path within a field (empty: the field itself), and the problem."""


def _problem(spec: FieldSpec, value: Any) -> _Problem | None:
    if value is None:
        return None if spec.nullable else ("", "must not be null")
    if not _is_a(spec.kinds, value):
        return "", f"must be {' or '.join(_NAMES[kind] for kind in spec.kinds)}"
    if isinstance(value, Mapping):
        return _object_problem(value, spec.limits.max_length or MAX_METADATA)
    if isinstance(value, (list, tuple)):
        return _list_problem(spec, value)
    problem = None
    if isinstance(value, str):
        problem = _text_problem(spec, value)
    elif not isinstance(value, bool):
        problem = _number_problem(spec.limits, value)
    return ("", problem) if problem else None


def _list_problem(spec: FieldSpec, value: Sequence[Any]) -> _Problem | None:
    maximum, item = spec.limits.max_length, spec.item
    if maximum is not None and len(value) > maximum:
        return "", f"must have at most {maximum:,} entries, has {len(value):,}"
    for index, entry in enumerate(value):
        if not isinstance(entry, item or object):
            kind = dict if item is not None and attrs.has(item) else item
            return f"[{index}]", f"must be {_NAMES[kind or str]}"
        if isinstance(entry, str) and (entry_problem := _entry_problem(entry)):
            return f"[{index}]", entry_problem
        if item is not None and attrs.has(item):
            inner = {name: getattr(entry, name) for name in specs(item)}
            for name, problem in _problems(spec.fields, inner).items():
                return f"[{index}].{name}", problem
    return None


def _entry_problem(entry: str) -> str | None:
    if len(entry) > MAX_NAME:
        return f"must be at most {MAX_NAME:,} characters, is {len(entry):,}"
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
    """Return why a text cannot be encoded: it has a lone surrogate. None if it can."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"is not valid Unicode: lone surrogate at character {error.start}"
    return None


def _number_problem(limits: Limits, value: float) -> str | None:
    if type(value) is float and not math.isfinite(value):  # isfinite fails with a large integer
        return "must be a finite number"
    minimum = limits.minimum if limits.minimum is not None else -MAX_INTEGER
    maximum = limits.maximum if limits.maximum is not None else MAX_INTEGER
    if not minimum <= value <= maximum:
        return f"must be between {_plain(minimum)} and {_plain(maximum)}"
    return None


def _plain(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


_MAX_JSON_DEPTH = 64


_NO_LIMITS = Limits()

_Node = tuple[Any, str | int, "_Node | None", int]
"""A value within an object, its key or index, its parent node, and its depth."""


def _place(node: _Node) -> str:
    steps: list[str | int] = []
    current: _Node | None = node
    while current is not None:
        _, step, current, _ = current
        steps.append(step)
    # The last is the object itself, which has no key.
    return "".join(
        f"[{step}]" if isinstance(step, int) else f".{shown(step)}" for step in steps[-2::-1]
    )


def object_problem(value: Mapping[str, Any], budget: int) -> str | None:
    """Return the problem of a JSON object; None if there is none.

    :param budget: its maximum bytes, without escapes and separators.
    """
    problem = _object_problem(value, budget)
    return None if problem is None else f"{problem[0]} {problem[1]}".strip()


def _object_problem(value: Mapping[str, Any], budget: int) -> _Problem | None:
    size = 0
    pending: list[_Node] = [(value, "", None, 0)]
    while pending:
        node = pending.pop()
        entry, _, _, depth = node
        if depth > _MAX_JSON_DEPTH:
            return "", f"must not be nested deeper than {_MAX_JSON_DEPTH}"
        if isinstance(entry, Mapping):
            size += 2
            for key, part in entry.items():
                if not isinstance(key, str):
                    return _place(node), "must have text keys only"
                child = (part, key, node, depth + 1)
                if problem := encoding_problem(key):
                    return _place(child), f"has a name that {problem}"
                size += len(key.encode()) + 2
                pending.append(child)
        elif isinstance(entry, (list, tuple)):
            size += 2
            pending += [(part, key, node, depth + 1) for key, part in enumerate(entry)]
        else:
            if problem := _leaf_problem(entry):
                return _place(node), problem
            size += _leaf_size(entry)
        if size > budget:
            return "", f"must be at most {budget:,} bytes"
    return None


def _leaf_problem(value: Any) -> str | None:
    if isinstance(value, str):
        return encoding_problem(value)
    if isinstance(value, int):
        return f"must have at most {MAX_DIGITS} digits" if has_many_digits(value) else None
    if isinstance(value, float):
        return _number_problem(_NO_LIMITS, value)
    return (
        None if value is None else f"is a {type(value).__name__}, which cannot be encoded as JSON"
    )


def _leaf_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode()) + 2
    return 2 + (_digits(value) if isinstance(value, int) else 0)


_DIGIT_BOUND: int = 10**MAX_DIGITS
_SAFE_BITS = _DIGIT_BOUND.bit_length() - 1


def has_many_digits(value: int) -> bool:
    """Return True if an integer has more than :data:`MAX_DIGITS` digits."""
    return value.bit_length() > _SAFE_BITS and abs(value) >= _DIGIT_BOUND


def _digits(value: int) -> int:
    """Return the number of an integer's digits, or one less, without converting it to text."""
    return value.bit_length() * 3 // 10
