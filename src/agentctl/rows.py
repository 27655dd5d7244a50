"""Commands as rows of a table: a call, whose fields are the options, and a view of its answer, or an action."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from string import Formatter
from typing import TYPE_CHECKING, Any

import click

from agent_orchestrator.fields import specs
from agent_orchestrator.operations.options import Page
from agent_orchestrator.operations.table import Operation
from agentctl.call import Call
from agentctl.fields import ALL, IN_ORDER, SHOWN, options_of
from agentctl.options import Group, identified

if TYPE_CHECKING:
    from agentctl.document import Block

Prepare = Callable[[Call, dict[str, Any]], Mapping[str, Any]]
"""Returns the fields of the call, or the arguments of the action, for a command's options."""


def row(
    group: Group,
    name: str,
    operation: Operation[Any, Any] | None,
    view: str,
    doc: str,
    examples: str,
    *,
    hint: str = "",
    of: str | None = None,
    then: str | None = None,
    prepare: Prepare = lambda _, values: values,
    default_format: Any = "text",
    extra: Iterable[Callable[[Any], Any]] = (),
    without: Iterable[str] = (),
    **options: Any,
) -> click.Command:
    """Add a command to a group.

    :param view: a sentence with fields of the answer in braces, or ``module:function:field``: the
        function returns the blocks for that field of the answer, or for the whole answer. A table
        gets a single object as a list. With
        ``!module:function``, the command is this function of a connection and the options.
    :param hint: what to do next, like ``view``.
    :param of: the field whose id is the first argument, in place of the one in the call's path; empty
        for none.
    :param then: an argument after the id; in brackets if it may be missing.
    :param extra: further options, as decorators.
    :param options: see :func:`agentctl.fields.options_of`.
    """
    fields = operation.path_fields if operation is not None and of is None else (of,) if of else ()
    request: Any = type(None) if operation is None else operation.request
    is_list = issubclass(request, Page) and not view.startswith("!")
    is_ordered = is_list and "order" in specs(request)

    def callback(**values: Any) -> None:
        call = Call.current(default_format=default_format)
        sent = prepare(call, values)

        async def body(connection: Any) -> Any:
            if view.startswith("!"):
                return await _found(view[1:])(connection, **sent)
            assert operation is not None
            if is_list:
                from agentctl.paging import pages

                fields = _for_people(sent) if is_ordered and call.output.for_people else sent
                reply = await pages(connection, operation, **fields)
            else:
                reply = await connection.call(operation, **sent)
            call.output.answer(reply, lambda: view_of(view, reply))
            if is_list:
                call.output.note_next_page(reply.next_cursor)
            for line in view_of(hint, reply) if hint else ():
                call.output.hint(str(line))
            return None

        call.run(body)

    decorated: Any = callback
    for add in reversed([*extra]):
        decorated = add(decorated)
    if operation is not None:
        defaults = IN_ORDER if is_ordered else {"limit": ALL} if is_list else {}
        options = {**defaults, **options}
        decorated = options_of(request, without={*without, *fields}, **options)(decorated)
    if fields:
        decorated = identified(fields[0].removesuffix("_id"), then=then)(decorated)
    decorated.__doc__ = doc
    return group.command(name, examples=examples)(decorated)


def _for_people(sent: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a list on a terminal: by default, one page with the newest first.

    A search reads all pages, because a page of a search may have few entries.
    """
    chosen = {name: value for name, value in sent.items() if value is not None}
    limit = {} if chosen.keys() & {"q", "provider"} else {"limit": SHOWN}
    return {**sent, "order": "newest", **limit, **chosen}


def _found(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    found: Callable[..., Any] = getattr(import_module(f"agentctl.{module}"), function)
    return found


def view_of(view: str, reply: Any) -> "Iterable[Block]":
    """Return the blocks of an answer; see :func:`row`."""
    if any(name for _, name, _, _ in Formatter().parse(view)):
        return [view.format_map({name: getattr(reply, name) for name in reply.__annotations__})]
    module, function, *field = view.split(":")
    value = getattr(reply, field[0]) if field else reply
    if function.endswith("_table") and not isinstance(value, Sequence):
        value = [value]
    blocks: Iterable[Block] = _found(f"{module}:{function}")(value, datetime.now(UTC))
    return blocks
