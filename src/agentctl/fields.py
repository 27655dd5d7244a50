"""Command-line options generated from the fields of operations."""

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
    """Return the JSON object in a file, or in standard input for ``-``.

    :raises Failure: if it cannot be read or is not an object.
    """
    if path == "-":
        return read_object("-", "--output-schema")
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise usage_failure(f"--output-schema {path} cannot be read: {reason}") from None
    return parse_object(text, "--output-schema")


def read_images(paths: Sequence[str]) -> list[dict[str, str]]:
    """Return image files in the format of a message.

    :raises Failure: if a file cannot be read or is not a supported image, or if they are too large.
    """
    from base64 import b64encode

    from agent_orchestrator.domain.images import size_problem

    images = [_image(path) for path in paths]
    if problem := size_problem([len(data) for data in images]):
        raise usage_failure(f"--image: the images {problem}")
    return [{"data": b64encode(data).decode()} for data in images]


def _image(path: str) -> bytes:
    from agent_orchestrator.domain.images import MAX_IMAGE_BYTES, ImageContent

    try:
        # Non-blocking, because opening a pipe waits for its writer. Devices are refused: they may be endless.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise usage_failure(f"--image {path} is not a regular file")
            return ImageContent.of(file.read(MAX_IMAGE_BYTES + 1)).data
    except OSError as error:
        raise usage_failure(f"--image {path} cannot be read: {error.strerror or error}") from None
    except ValueError as problem:
        raise usage_failure(f"--image {path} {problem}") from None


_TEXTS: Final = ("text", "task", "reason")
"""Fields with long texts. ``-`` reads them from standard input."""

_FROM_FILES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "images": read_images,
    "output_schema": read_schema,
}
"""Fields that are read from files, with their readers."""


ALL: Final = "Maximum number of entries.  [default: all]"
"""Help of ``--limit`` for commands that read all pages by default."""

SHOWN: Final = 100
"""Default number of entries of a list on a terminal, which shows the newest first."""

IN_ORDER: Final[Mapping[str, str]] = {
    "limit": f"Maximum number of entries.  [default: {SHOWN} on a terminal, otherwise all]",
    "order": "The order of the entries.  [default: newest on a terminal, otherwise oldest]",
}
"""Help of the options of such a list."""


def options_of(
    kind: type,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    required: Collection[str] = (),
    optional: Collection[str] = (),
    **help_: str,
) -> Callable[[F], F]:
    """Add an option to a command for each field of a request class.

    The field determines the option's name, type, bounds, default and help. Options that are not given
    are passed as None.

    :param only: names of the fields to include; None for all.
    :param without: names of fields to exclude.
    :param required: fields that the command requires although the API does not.
    :param optional: fields that the command does not require although the API does.
    :param help_: help texts that replace those of fields, by field name.
    """
    chosen = [
        spec
        for name, spec in specs(kind).items()
        if (only is None or name in only) and name not in without
    ]

    def decorate(function: F) -> F:
        @keeping_name(function)
        def wrapper(**values: Any) -> Any:
            # Ids first: standard input may hold an id on its first line and a text after it.
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


def _option(spec: FieldSpec, help_override: str | None, *, required: bool) -> Callable[[F], F]:
    """Return the option for a field."""
    flag, help_text = _flag(spec), help_override or spec.limits.doc
    if bool in spec.kinds:
        if spec.default:
            flag, help_text = f"{flag}/--no-{spec.name}", f"{help_text}  [default: yes]"
        return click.option(
            flag, spec.name, is_flag=True, default=bool(spec.default), help=help_text
        )
    if spec.name in _TEXTS or dict in spec.kinds:
        help_text = f"{help_text} Use - for standard input."
    if help_override is None and spec.default not in (None, (), attrs.NOTHING):
        default = f"{spec.default:g}" if isinstance(spec.default, float) else spec.default
        help_text = f"{help_text}  [default: {default}]"
    if list in spec.kinds:
        help_text = f"{help_text.removesuffix('.')}; repeatable."
    return click.option(
        flag,
        spec.name,
        type=_type(spec),
        metavar=_metavar(spec),
        multiple=list in spec.kinds,
        required=required,
        help=help_text,
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
    """Return a field's value, read from a file or standard input if the option names one.

    :raises Failure: if that cannot be read.
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
