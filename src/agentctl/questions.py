"""Text of requests. No I/O."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from agent_orchestrator.domain.model import Option, Request
from agent_orchestrator.wire.codec import from_plain, parse_time
from agentctl.event_text import text_of
from agentctl.tables import Cell, Column, card, table
from agentctl.terminal import Style, clean, one_line, revealed, wrapped
from agentctl.times import ago, duration, local

_KINDS: Final = {
    "approval_request": "approval",
    "permission_request": "permission",
    "input_request": "input",
}

_STYLES: Final[dict[str, tuple[str, ...]]] = {
    "pending": ("yellow", "bold"),
    "approved": ("green",),
    "answered": ("green",),
    "denied": ("red",),
    "expired": ("red",),
    "canceled": ("dim",),
}

GRANTED: Final = frozenset({"approved", "answered"})
"""Statuses in which the agent got what it asked for."""

_LISTED_CHARACTERS: Final = 2000


def _kind(kind: str) -> str:
    return _KINDS.get(kind, one_line(kind))


def _option(option: Option) -> str:
    """Return the label of an option, with its id if that differs."""
    name = option.label if option.label == option.id else f"{option.label} ({option.id})"
    return one_line(revealed(name))


def _reaches(options: Iterable[Option]) -> list[str]:
    """Return a line for each option that allows more than this one time."""
    return [
        one_line(revealed(f"{one.label} allows {one.reaches}")) for one in options if one.reaches
    ]


def _options(raw: object) -> list[Option]:
    """Return the options in an event, which may be one of an older or a newer daemon."""
    try:
        return from_plain(list[Option], raw or [])
    except ValueError:
        return []


def answering(kind: str, request_id: str) -> str:
    """Return the command line that answers a request."""
    identity = one_line(request_id)
    if kind == "input_request":
        return f"agentctl request answer {identity} --text TEXT"
    return f"agentctl request approve {identity}  (or deny)"


def _time_left(request: Request, now: datetime) -> str:
    """Return the time until an open request expires; empty for closed ones."""
    if not request.is_open:
        return ""
    seconds = (request.expires_at - now).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else "now"


def expires_soon(request: Request, now: datetime) -> bool:
    """Return whether an open request has reached its expiry warning."""
    return request.is_open and request.warn_at is not None and now >= request.warn_at


def request_table(requests: Sequence[Request], style: Style, now: datetime) -> list[str]:
    several = any(not request.is_open for request in requests)
    columns = [
        Column("REQUEST"),
        Column("KIND"),
        Column("STATUS"),
        Column("ASKED", align="right"),
        Column("EXPIRES", align="right"),
        Column("SESSION", optional=True),
        Column("TEXT", flexible=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            request.id,
            _kind(request.kind),
            Cell(request.status, _STYLES.get(request.status, ())) if several else "",
            ago(request.created_at, now),
            Cell(_time_left(request, now), ("red", "bold") if expires_soon(request, now) else ()),
            request.session_id,
            one_line(revealed(request.text[:_LISTED_CHARACTERS])),
        ]
        for request in requests
    ]
    return table(columns, rows, style) or ["no requests"]


def _audience_text(request: Request, now: datetime) -> str:
    """Return who should answer a request."""
    if request.audience != "parent":
        return request.audience or "none: the policy decides"
    seconds = 0.0 if request.human_at is None else (request.human_at - now).total_seconds()
    asks = f"its parent {request.parent_session_id}"
    return f"{asks}, then a person in {duration(max(seconds, 0))}" if request.is_open else asks


def request_card(request: Request, style: Style, now: datetime) -> list[str]:
    """Return the lines of a detailed view of a request."""
    end = f"{_time_left(request, now)}  ({local(request.expires_at):%Y-%m-%d %H:%M:%S})"
    lines = card(
        f"{style.paint('request', 'dim')} {style.paint(request.id, 'bold')}",
        [
            ("status", Cell(request.status, _STYLES.get(request.status, ()))),
            ("kind", _kind(request.kind)),
            ("session", request.session_id),
            ("run", request.run_id),
            ("asks", _audience_text(request, now)),
            ("policy", request.approvals),
            ("asked", ago(request.created_at, now)),
            ("expires", end if request.is_open else None),
            ("options", style.symbol(" · ", ", ").join(map(_option, request.options or ()))),
            ("closed", None if request.resolved_at is None else ago(request.resolved_at, now)),
            ("by", one_line(request.decided_by or "")),
            ("option", None if request.chosen is None else _option(request.chosen)),
            ("scope", request.scope),
        ],
        style,
    )
    lines += ["", *wrapped(revealed(request.text), style.columns)]
    for reaches in _reaches(request.options or ()):
        lines += ["", *wrapped(reaches, style.columns)]
    if request.detail:
        detail = json.dumps(request.detail, ensure_ascii=False, indent=2)
        lines += ["", style.paint("DETAIL", "dim"), *wrapped(revealed(detail), style.columns)]
    if request.answer:
        lines += ["", style.paint("ANSWER", "dim"), *wrapped(clean(request.answer), style.columns)]
    return lines


# --- events -----------------------------------------------------------------------------------


def asked(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the text of a ``request.created`` event, and lines with options and the command to answer."""
    kind = text_of(data, "kind")
    named = _KINDS.get(kind, "an answer")
    options = _options(data.get("options"))
    more = [f"options: {', '.join(map(_option, options))}"] if options else []
    more += _reaches(options)
    audience = data.get("audience", "human")
    if audience is not None:
        more.append(f"answer: {answering(kind, text_of(data, 'id') or 'REQUEST_ID')}")
    whom = " its parent" if audience == "parent" else ""
    return f"asks{whom} for {named}: {revealed(text_of(data))}", more


def escalated(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the text and the command to answer, for a request that was escalated to people."""
    question = one_line(revealed(text_of(data)[:_LISTED_CHARACTERS]))
    answer = answering(text_of(data, "kind"), text_of(data, "id") or "REQUEST_ID")
    return f"its parent has not answered, so a person is asked: {question}", [f"answer: {answer}"]


def extending(request_id: str) -> str:
    """Return the command line that extends a request."""
    return f"agentctl request extend {one_line(request_id)} --expires-in-s 3600"


def expiring(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the text and the commands for a request that expires soon."""
    question = one_line(revealed(text_of(data)[:_LISTED_CHARACTERS]))
    name = text_of(data, "id") or "REQUEST_ID"
    answer = answering(text_of(data, "kind"), name)
    when = _moment(data, "expires_at")
    more = [f"answer: {answer}", f"more time: {extending(name)}"]
    return f"not answered yet, expires{when}: {question}", more


def extended(data: Mapping[str, Any]) -> str:
    """Return the text for a request that was extended."""
    return f"request {one_line(text_of(data, 'id'))} now expires{_moment(data, 'expires_at')}"


def _moment(data: Mapping[str, Any], name: str) -> str:
    try:
        return f" at {local(parse_time(text_of(data, name))):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):
        return ""


_CLOSED: Final = {
    "expired": "expired without an answer",
    "canceled": "withdrawn: its run ended",
}


def resolved(data: Mapping[str, Any]) -> tuple[bool, str]:
    """Return whether a resolved request was granted, and its text."""
    status = text_of(data, "status") or "closed"
    text = _CLOSED.get(status, one_line(status))
    if (by := text_of(data, "decided_by")) and by != "local":
        text += f" by {one_line(by)}"
    if answer := text_of(data, "answer"):
        text += f": {answer}"
    name = one_line(text_of(data, "id"))
    return status in GRANTED, f"request {name} {text}" if name else text
