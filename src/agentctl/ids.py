"""Ids as people type them: a unique beginning or end, ``@last``, or the row of the last list."""

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
from agentctl.paging import each_page, pages
from agentctl.terminal import one_line

if TYPE_CHECKING:
    import click

    from agentctl.connection import DaemonConnection

_WHOLE: Final = re.compile(r"[a-z]{3}_[0-9a-v]{26}")
_MAX_SUGGESTIONS: Final = 100
_COMPLETION_S: Final = 2.0
"""Seconds after which the shell gets no suggestions."""

_LISTS: Final[Mapping[str, tuple[Operation[Any, Any], str, Mapping[str, Any], str]]] = {
    "session": (LIST_SESSIONS, "sessions", {}, "title"),
    "run": (LIST_RUNS, "runs", {}, "status"),
    "request": (LIST_REQUESTS, "requests", {"resolvable": False}, "text"),
    "token": (LIST_TOKENS, "tokens", {}, "name"),
    "subscription": (LIST_PUSH, "subscriptions", {}, "name"),
    "notice": (LIST_NOTICES, "notices", {}, "target"),
}
"""For each kind of id: the call that lists them, its field, its filters, and what names one."""


async def _newest(
    connection: "DaemonConnection", kind: str, *, limit: int | None, q: str | None = None
) -> Sequence[Any]:
    """Return objects of a kind, newest first.

    :param limit: maximum number of objects; None for all.
    :param q: words that must be in their texts or ids.
    """
    operation, field, filters, _ = _LISTS[kind]
    page = await pages(
        connection, operation, field, limit=limit, cursor=None, order="newest", q=q, **filters
    )
    found: Sequence[Any] = getattr(page, field)
    return found


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
        return value  # the call names what is wrong with it
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
        raise usage_failure(f"{value} is the id of several: {', '.join(found[:3])}{more}")
    return str(found[0])


async def last_session(connection: "DaemonConnection", directory: str | None) -> str:
    """Return the newest open session of a directory that is nobody's child.

    :param directory: None for any.
    :raises Failure: if there is none.
    """
    async for page in each_page(connection, LIST_SESSIONS, status="open", order="newest"):
        for one in page.sessions:
            if one.parent_session_id is None and directory in (None, one.cwd):
                return str(one.id)
    raise usage_failure(f"there is no open session of {directory or 'agentd'} to continue")


def _matches(whole: str, part: str) -> bool:
    return (
        whole.startswith(part) or whole.endswith(part) or whole.partition("_")[2].startswith(part)
    )


# --- the last list ------------------------------------------------------------------------------


def remember(url: str, listed: Sequence[str]) -> None:
    """Remember the ids of a list that a person sees, for ``@1``, ``@2`` and so on."""
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
    """Return ids with what names each, newest first; nothing if the daemon does not answer soon.

    :param start: what was typed of the id so far.
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
                name = _LISTS[kind][3]
                entries = await _newest(connection, kind, limit=_MAX_SUGGESTIONS, q=start or None)
                found.extend(
                    (one.id, one_line(str(getattr(one, name) or ""))[:60])
                    for one in entries
                    if one.id.startswith(start)
                )

    with suppress(Exception):  # a shell must not see errors of ours
        anyio.run(ask)
    return found
