"""Abbreviated ids: a unique beginning or end, ``@last``, or a row of the last list."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio

from agent_orchestrator.domain.errors import OrchestratorError
from agent_orchestrator.fields import ID_PATTERN, MAX_ID
from agent_orchestrator.operations.access import LIST_TOKENS
from agent_orchestrator.operations.notices import LIST_NOTICES
from agent_orchestrator.operations.push import LIST_PUSH
from agent_orchestrator.operations.requests import LIST_REQUESTS
from agent_orchestrator.operations.runs import LIST_RUNS
from agent_orchestrator.operations.sessions import LIST_SESSIONS
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.user_state import (
    make_private_directory,
    read_private,
    user_state,
    write_private,
)
from agentctl.failures import usage_failure
from agentctl.paging import each_page, items_of, pages
from agentctl.terminal import one_line

if TYPE_CHECKING:
    import click

    from agentctl.connection import DaemonConnection

_WHOLE: Final = re.compile(r"[a-z]{3}_[0-9a-v]{26}")
_MAX_SUGGESTIONS: Final = 100
_COMPLETION_S: Final = 2.0
"""Seconds after which the shell gets no suggestions."""

_LISTS: Final[Mapping[str, tuple[Operation[Any, Any], Mapping[str, Any], str]]] = {
    "session": (LIST_SESSIONS, {}, "title"),
    "run": (LIST_RUNS, {}, "status"),
    "request": (LIST_REQUESTS, {"resolvable": False}, "text"),
    "token": (LIST_TOKENS, {}, "name"),
    "subscription": (LIST_PUSH, {}, "name"),
    "notice": (LIST_NOTICES, {}, "target"),
}
"""For each kind of id: the call that lists them, its filters, and the field that describes one."""


async def _newest(
    connection: "DaemonConnection", kind: str, *, limit: int | None, q: str | None = None
) -> Sequence[Any]:
    """Return objects of a kind, newest first.

    :param limit: maximum number of objects; None for all.
    :param q: words that must be in their texts or ids.
    """
    operation, filters, _ = _LISTS[kind]
    return items_of(await pages(connection, operation, limit=limit, order="newest", q=q, **filters))


async def whole_ids(connection: "DaemonConnection", values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a call with all ids whole."""
    for name, value in values.items():
        kind = name.removesuffix("_id").rpartition("_")[2]
        if name.endswith("_id") and kind in _LISTS and isinstance(value, str):
            values = values | {name: await _whole_id(connection, kind, value)}
    return values


async def _whole_id(connection: "DaemonConnection", kind: str, value: str) -> str:
    if _WHOLE.fullmatch(value):
        return value
    if value.startswith("@") and value[1:].isdecimal():
        return _listed(connection.url, int(value[1:]))
    is_possible = len(value) <= MAX_ID and re.fullmatch(ID_PATTERN, value)
    if value != "@last" and not is_possible:
        return value  # the call reports it as invalid
    try:
        if value == "@last":
            newest = await _newest(connection, kind, limit=1)
        else:
            newest = await _newest(connection, kind, limit=None, q=value)
    except OrchestratorError:
        return value
    if value == "@last":
        if not newest:
            raise usage_failure(f"there is no {kind} yet")
        return str(newest[0].id)
    found = [one.id for one in newest if _matches(one.id, value)]
    if value in found or not found:
        return value
    if len(found) > 1:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise usage_failure(f"{value} fits several ids: {', '.join(found[:3])}{more}")
    return str(found[0])


async def last_session(connection: "DaemonConnection", directory: str | None) -> str:
    """Return the newest open session of a directory that has no parent.

    :param directory: None for any.
    :raises Failure: if there is none.
    """
    async for page in each_page(connection, LIST_SESSIONS, status="open", order="newest"):
        for one in page.sessions:
            if one.parent_session_id is None and directory in (None, one.cwd):
                return str(one.id)
    where = f" in {directory}" if directory else ""
    raise usage_failure(f"there is no open session{where} to continue")


def _matches(whole: str, part: str) -> bool:
    return (
        whole.startswith(part) or whole.endswith(part) or whole.partition("_")[2].startswith(part)
    )


# --- the last list ------------------------------------------------------------------------------


def remember(url: str, listed: Sequence[str]) -> None:
    """Store the ids of a list that was shown on a terminal, for ``@1``, ``@2`` and so on."""
    if (state := user_state()) is None:
        return
    with suppress(OSError):  # a convenience: the list itself was shown
        make_private_directory(state.root)
        write_private(state.last_list, json.dumps({"url": url, "ids": listed}).encode())


def _listed(url: str, number: int) -> str:
    state = user_state()
    content = read_private(state.last_list) if state is not None else None
    try:
        found = json.loads(content or b"{}")
        ids = found["ids"] if found["url"] == url else []
        return str(ids[number - 1 if number > 0 else len(ids)])
    except (ValueError, LookupError, TypeError):
        raise usage_failure(f"the last list had no row {number}") from None


# --- completion ---------------------------------------------------------------------------------


def suggestions(context: "click.Context", kind: str, start: str) -> list[tuple[str, str]]:
    """Return ids with their titles, newest first; nothing if the daemon does not answer soon.

    :param start: the beginning of the id.
    """
    from agentctl.connection import connected
    from agentctl.options import given
    from agentctl.output import Output
    from agentctl.settings import resolve

    found: list[tuple[str, str]] = []

    async def ask() -> None:
        settings = resolve(given(context))
        with anyio.move_on_after(_COMPLETION_S):
            async with connected(settings, Output(settings)) as connection:
                name = _LISTS[kind][2]
                entries = await _newest(connection, kind, limit=_MAX_SUGGESTIONS, q=start or None)
                found.extend(
                    (one.id, one_line(str(getattr(one, name) or ""))[:60])
                    for one in entries
                    if one.id.startswith(start)
                )

    with suppress(Exception):  # a shell must not see errors of ours
        anyio.run(ask)
    return found
