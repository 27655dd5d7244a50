"""Commands that are one call and one view: a row each, from the table of operations."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from string import Formatter
from typing import TYPE_CHECKING, Any, Final

import click

from agent_orchestrator.operations.options import Page
from agent_orchestrator.operations.table import Operation
from agentctl.call import Call
from agentctl.fields import ALL, options_of
from agentctl.options import Group, identified

if TYPE_CHECKING:
    from agentctl.document import Block

Prepare = Callable[[Call, dict[str, Any]], Mapping[str, Any]]
"""Returns the fields of the call for a command's options."""

_LISTS: Final = ("sessions", "messages", "runs", "requests", "tokens", "entries")


def row(
    group: Group,
    name: str,
    operation: Operation[Any, Any],
    view: str,
    doc: str,
    examples: str,
    *,
    hint: str = "",
    of: str | None = None,
    then: str | None = None,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    required: Iterable[str] = (),
    prepare: Prepare = lambda _, values: values,
    default_format: Any = "text",
    extra: Iterable[Callable[[Any], Any]] = (),
    **help_: str,
) -> click.Command:
    """Add a command to a group.

    :param view: a sentence with fields of the answer in braces, or ``module:function:field``: the
        function returns the blocks for that field of the answer, or for the whole answer.
    :param hint: what to do next, with fields of the answer in braces.
    :param of: the field whose id is the first argument; None for the one in the call's path.
    :param then: an argument after the id; in brackets if it may be missing.
    :param only: names of the fields to offer as options; None for all. :param without: those not to.
    :param extra: further options, as decorators.
    :param help_: help texts that replace those of fields.
    """
    is_list = issubclass(operation.request, Page) and hasattr(operation.answer, "next_cursor")
    path_fields = (of,) if of is not None else operation.path_fields
    if is_list:
        help_ = {"limit": ALL} | help_

    def callback(**values: Any) -> None:
        call = Call.current(default_format=default_format)
        sent = prepare(call, values)

        async def body(connection: Any) -> None:
            if is_list:
                from agentctl.paging import pages

                found = next(one for one in _LISTS if one in operation.answer.__annotations__)
                reply = await pages(connection, operation, found, **sent)
            else:
                reply = await connection.call(operation, **sent)
            call.output.answer(reply, lambda: view_of(view, reply))
            if is_list:
                call.output.note_next_page(reply.next_cursor)
            for line in view_of(hint, reply) if hint else ():
                call.output.hint(str(line))

        call.run(body)

    decorated: Any = callback
    for add in reversed([*extra]):
        decorated = add(decorated)
    hidden = {*without, *path_fields}
    decorated = options_of(
        operation.request, only=_set(only), without=hidden, required=[*required], **help_
    )(decorated)
    if path_fields:
        decorated = identified(path_fields[0].removesuffix("_id"), then=then)(decorated)
    decorated.__doc__ = doc
    return group.command(name, examples=examples)(decorated)


def _set(names: Iterable[str] | None) -> set[str] | None:
    return None if names is None else {*names}


def _fields(reply: Any) -> dict[str, Any]:
    return {name: getattr(reply, name) for name in reply.__annotations__}


def view_of(view: str, reply: Any) -> "Iterable[Block]":
    """Return the blocks of an answer; see :func:`row`."""
    if any(name for _, name, _, _ in Formatter().parse(view)):
        return [view.format_map(_fields(reply))]
    module, function, *field = view.split(":")
    value = getattr(reply, field[0]) if field else reply
    blocks: Iterable[Block] = getattr(import_module(f"agentctl.{module}"), function)(
        value, datetime.now(UTC)
    )
    return blocks
