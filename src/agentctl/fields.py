"""Options made of the fields of operations: each has the name, type, bounds and help of its field."""

import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click

from agent_orchestrator.fields import ID_PATTERN, PATH_PATTERN, FieldSpec, specs
from agentctl.failures import usage_failure
from agentctl.options import Number, keeping_name, parse_object, read_id, read_object, read_text

F = TypeVar("F", bound=Callable[..., Any])


def read_schema(path: str) -> dict[str, Any]:
    """Return the JSON object in a file; ``-`` means standard input.

    :raises Failure: if it cannot be read or is no object.
    """
    if path == "-":
        return read_object("-", "--output-schema")
    try:
        said = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise usage_failure(f"--output-schema {path} cannot be read: {reason}") from None
    return parse_object(said, "--output-schema")


def read_images(paths: Sequence[str]) -> list[dict[str, str]]:
    """Return image files as a message takes them.

    :raises Failure: if one is none that is taken, or cannot be read, or they are too large together.
    """
    from base64 import b64encode

    from agent_orchestrator.domain.images import size_problem

    found = [_image(path) for path in paths]
    if problem := size_problem([len(data) for data in found]):
        raise usage_failure(f"--image: the images {problem}")
    return [{"data": b64encode(data).decode()} for data in found]


def _image(path: str) -> bytes:
    from agent_orchestrator.domain.images import MAX_IMAGE_BYTES, ImageContent

    try:
        # Whoever opens a pipe would wait for its writer, and a device may have no end.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise usage_failure(f"--image {path} is not a regular file")
            return ImageContent.of(file.read(MAX_IMAGE_BYTES + 1)).data
    except OSError as error:
        raise usage_failure(f"--image {path} cannot be read: {error.strerror or error}") from None
    except ValueError as problem:
        raise usage_failure(f"--image {path} {problem}") from None


_TEXTS: Final = ("text", "task", "reason")
"""Fields whose value may be long: ``-`` stands for standard input."""

_FROM_FILES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "images": read_images,
    "output_schema": read_schema,
}
"""Fields whose value is read from a file, and how."""


ALL: Final = "How many at most.  [default: all]"
"""The help of ``--limit`` where a command goes through all pages."""


def options_of(
    kind: type,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    required: Collection[str] = (),
    optional: Collection[str] = (),
    **help_: str,
) -> Callable[[F], F]:
    """Give a command an option for each field of an operation's command.

    Name, type, bounds, default and help are those of the field. The function gets None where nothing is
    given.

    :param only: fields to take; all without it.
    :param without: fields not to take.
    :param required: fields that must be given, though the API does not need them.
    :param optional: fields that need not be given, though the API needs them.
    :param help_: by field, help that replaces the field's own.
    """
    chosen = [
        spec
        for name, spec in specs(kind).items()
        if (only is None or name in only) and name not in without
    ]

    def decorate(function: F) -> F:
        @keeping_name(function)
        def wrapper(**values: Any) -> Any:
            # Ids come first: standard input may hold one, and after its line a text.
            for spec in sorted(chosen, key=lambda spec: not _is_id(spec)):
                values[spec.name] = _value(spec, values[spec.name])
            return function(**values)

        for spec in reversed(chosen):
            must = spec.name in required or (spec.required and spec.name not in optional)
            wrapper = _option(spec, help_.get(spec.name), required=must)(wrapper)
        return wrapper  # type: ignore[return-value]

    return decorate


def _is_id(spec: FieldSpec) -> bool:
    return spec.limits.pattern == ID_PATTERN


def _flag(spec: FieldSpec) -> str:
    return spec.limits.flag or "--" + spec.name.replace("_", "-")


def _option(spec: FieldSpec, said: str | None, *, required: bool) -> Callable[[F], F]:
    """Return the option that a field stands for."""
    flag, told = _flag(spec), said or spec.limits.doc
    if bool in spec.kinds:
        if spec.default:
            flag, told = f"{flag}/--no-{spec.name}", f"{told}  [default: yes]"
        return click.option(flag, spec.name, is_flag=True, default=bool(spec.default), help=told)
    if spec.name in _TEXTS or dict in spec.kinds:
        told = f"{told.removesuffix('.')}; - reads standard input."
    if said is None and spec.default not in (None, (), attrs.NOTHING):
        shown = f"{spec.default:g}" if isinstance(spec.default, float) else spec.default
        told = f"{told}  [default: {shown}]"
    if list in spec.kinds:
        told = f"{told.removesuffix('.')}; may be repeated."
    return click.option(
        flag,
        spec.name,
        type=_type(spec),
        metavar=_metavar(spec),
        multiple=list in spec.kinds,
        required=required,
        help=told,
    )


def _type(spec: FieldSpec) -> "click.ParamType[Any] | None":
    limits = spec.limits
    if spec.choices:
        return click.Choice(spec.choices)
    if int in spec.kinds:
        return click.IntRange(_whole(limits.minimum), _whole(limits.maximum))
    if float in spec.kinds:
        return Number(limits.minimum, limits.maximum)
    return None


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _metavar(spec: FieldSpec) -> str | None:
    if spec.name in _FROM_FILES:
        return "FILE"
    if dict in spec.kinds:
        return "JSON"
    if _is_id(spec):
        return "ID"
    return "DIR" if spec.limits.pattern == PATH_PATTERN else None


def _value(spec: FieldSpec, value: Any) -> Any:
    """Return the value of a field that its option was given.

    :raises Failure: if what it names cannot be read.
    """
    if value is None or value == ():
        return None
    if spec.name in _FROM_FILES:
        return _FROM_FILES[spec.name](value)
    if dict in spec.kinds:
        return read_object(value, _flag(spec))
    if _is_id(spec):
        return read_id(value)
    return read_text(value) if spec.name in _TEXTS else value
