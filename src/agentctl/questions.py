"""Requests: their views, the texts of their events, and their possible answers. No I/O."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from attrs import frozen

from agent_orchestrator.domain.model import Option, Request
from agent_orchestrator.wire.codec import from_plain, parse_time
from agentctl.diffs import changes_of, diff_blocks, objects
from agentctl.document import Block, Card, Column, Markdown, Table, Text
from agentctl.event_text import bare_command, person, text_of
from agentctl.terminal import one_line, revealed
from agentctl.times import ago, clock, duration
from agentctl.views import state

_KINDS: Final = {
    "approval_request": "approval",
    "permission_request": "permission",
    "input_request": "input",
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


def time_left(request: Request, now: datetime) -> str:
    """Return the time until an open request expires; empty for closed ones."""
    if not request.is_open:
        return ""
    seconds = (request.expires_at - now).total_seconds()
    return f"in {duration(seconds)}" if seconds > 0 else "now"


def expires_soon(request: Request, now: datetime) -> bool:
    """Return whether an open request has reached its expiry warning."""
    return request.is_open and request.warn_at is not None and now >= request.warn_at


def request_table(requests: Sequence[Request], now: datetime) -> list[Block]:
    def expires(request: Request) -> Text:
        return Text(time_left(request, now), "bold red" if expires_soon(request, now) else "")

    several = any(not request.is_open for request in requests)
    columns = [
        Column("REQUEST", lambda one: one.id),
        Column("KIND", lambda one: _kind(one.kind)),
        Column("STATUS", lambda one: state(one.status) if several else ""),
        Column("ASKED", lambda one: ago(one.created_at, now), right=True),
        Column("EXPIRES", expires, right=True),
        Column("SESSION", lambda one: one.session_id),
        Column(
            "TEXT",
            lambda one: Text(one.text[:_LISTED_CHARACTERS], reveal=True),
            flexible=True,
        ),
    ]
    return [Table(columns, requests, "no requests", "TEXT KIND STATUS ASKED EXPIRES REQUEST")]


def request_card(request: Request, now: datetime) -> list[Block]:
    """Return a request with its full text and details."""
    end = f"{time_left(request, now)}  ({clock(request.expires_at)})"
    asks: str = request.audience or "none: the policy decides"
    if request.audience == "parent":
        seconds = 0.0 if request.human_at is None else (request.human_at - now).total_seconds()
        later = f", then a person in {duration(max(seconds, 0))}" if request.is_open else ""
        asks = f"its parent {request.parent_session_id}{later}"
    options = request.options or ()
    blocks: list[Block] = [
        Card(
            Text(f"request {request.id}", "bold"),
            [
                ("status", state(request.status)),
                ("kind", _kind(request.kind)),
                ("session", request.session_id),
                ("run", request.run_id),
                ("asks", asks),
                ("policy", request.approvals),
                ("asked", ago(request.created_at, now)),
                ("expires", end if request.is_open else None),
                ("options", " · ".join(map(_option, options))),
                ("closed", None if request.resolved_at is None else ago(request.resolved_at, now)),
                ("by", request.decided_by),
                ("on device", request.decided_on),
                ("option", None if request.chosen is None else _option(request.chosen)),
                ("scope", request.scope),
            ],
        ),
        "",
        *question_blocks(request, folded=False),
    ]
    if request.answer:
        blocks += ["", Text("ANSWER", "dim"), request.answer]
    return blocks


def inbox_hints(requests: Sequence[Request], now: datetime) -> list[str]:
    """Return the next steps for a list of requests."""
    hints = []
    if any(request.is_open for request in requests):
        hints.append("show one in full: agentctl request show REQUEST_ID")
    if soon := sum(expires_soon(request, now) for request in requests):
        hints.append(f"{soon} expire soon; more time: {extending('REQUEST_ID')}")
    return hints


def next_step(request: Request, _: datetime) -> list[str]:
    """Return how to answer an open request."""
    return [f"next: {answering(request.kind, request.id)}"] if request.is_open else []


def extended_line(request: Request, _: datetime) -> list[Block]:
    return [f"request {request.id} expires at {clock(request.expires_at)}"]


def question_blocks(request: Request, *, folded: bool = True) -> list[Block]:
    """Return the question: its text, what its options allow, and its detail."""
    blocks: list[Block] = [Text(request.text, reveal=True)]
    for reaches in _reaches(request.options or ()):
        blocks += ["", reaches]
    if request.detail:
        blocks += ["", *detail_blocks(request.detail, folded=folded)]
    return blocks


_SHAPES: Final = {
    "command": ("command", "cwd", "reason"),
    "file_change": ("changes", "reason"),
    "permission": ("permissions", "reason"),
    "tool": ("name", "server", "input"),
    "question": ("questions",),
    "plan": ("text",),
}
"""The fields of each type of detail that have a special display; the others are shown as JSON."""


def detail_blocks(detail: Mapping[str, Any], *, folded: bool = True) -> list[Block]:
    """Return the detail of a request. Unknown types and fields are shown as JSON."""
    kind = text_of(detail, "type")
    blocks: list[Block] = []
    for name in _SHAPES.get(kind, ()):
        value = detail.get(name)
        if value in (None, "", [], {}):
            continue
        match name:
            case "command":
                blocks.append(Text(f"$ {bare_command(str(value))}", "bold", reveal=True))
            case "changes":
                blocks += diff_blocks(changes_of(detail), folded=folded)
            case "questions":
                blocks += _asked_together(objects(value))
            case "text":
                blocks.append(Markdown(revealed(str(value))))
            case "permissions" | "input":
                blocks.append(Text(_json(value), reveal=True))
            case _:
                label = {"cwd": "in", "name": "tool"}.get(name, name)
                blocks.append(Text(f"{label} {one_line(revealed(str(value)))}", "dim"))
    known = {"type", *_SHAPES[kind]} if kind in _SHAPES else set()
    rest = {name: value for name, value in detail.items() if name not in known}
    if isinstance(cut := rest.get("cut"), list | tuple) and known:
        rest.pop("cut")
        blocks.append(Text(f"too long, and cut: {', '.join(map(str, cut))}", "red"))
    if known and rest.get("agent") in (None, {}):
        rest.pop("agent", None)
    if rest:
        blocks += [*([""] if blocks else []), Text("DETAIL", "dim"), Text(_json(rest), reveal=True)]
    return blocks


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def _asked_together(questions: Sequence[Mapping[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for question in questions:
        several = " (several may be chosen)" if question.get("multiple") else ""
        blocks.append(Text(text_of(question) + several, "bold", reveal=True))
        for choice in objects(question.get("choices")):
            about = text_of(choice, "description")
            blocks.append(
                Text(
                    f"  - {text_of(choice, 'label')}" + (f": {about}" if about else ""), reveal=True
                )
            )
    return blocks


# --- answers ------------------------------------------------------------------------------------


def answer_names(questions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of the answer to each question: its id, else its text, else its place, from 0.

    A name that an earlier question has is followed by a number, so that no answer replaces another one.
    """
    names: list[str] = []
    for place, question in enumerate(questions):
        given = (question.get("id"), question.get("text"), place)
        name = own = str(next(one for one in given if one is not None))
        number = place + 1
        while name in names:
            name = f"{own} ({number})"
            number += 1
        names.append(name)
    return names


@frozen
class Choice:
    """A possible answer to a request.

    :param key: the key for it.
    :param needs_text: whether to ask for a text.
    :param needs_yes: what it allows permanently, to be confirmed by the user; empty if that is unknown, None if
        it needs no confirmation.
    """

    key: str
    label: str
    decision: str
    option: str | None = None
    needs_text: bool = False
    needs_yes: str | None = None


_KEYS: Final = {
    "allow_once": ("a", "approve"),
    "allow_session": ("s", "approve for the session"),
    "allow_always": ("l", ""),
    "deny": ("d", "deny"),
    "deny_and_stop": ("x", "deny and end the turn"),
}


def choices_of(request: Request) -> list[Choice]:
    """Return the answers that a request offers, in the order to show them."""
    options, is_question = request.options or (), request.kind == "input_request"
    choices: list[Choice] = []
    digits = iter("123456789")
    for option in options:
        key, label = _KEYS.get(option.kind, ("", ""))
        if not key or any(one.key == key for one in choices):
            key, label = next(digits, ""), ""
        decision = (
            "answer" if option.kind == "answer" else "deny" if "deny" in option.kind else "approve"
        )
        lasting = option.reaches or "" if option.kind == "allow_always" else None
        if key:
            shown = label or one_line(revealed(option.label))
            choices.append(Choice(key, shown, decision, option.id, needs_yes=lasting))
    offered = {one.decision for one in choices}
    if not is_question and not offered & {"approve", "answer"}:
        choices.insert(0, Choice("a", "approve", "approve"))
    if is_question:
        choices.append(Choice("r", "answer in words", "answer", needs_text=True))
    deny = next((one for one in choices if one.key == "d"), None)
    if deny is None and "deny" not in offered:
        choices.append(deny := Choice("d", "deny", "deny"))
    option_id = deny.option if deny is not None else None
    return [*choices, Choice("w", "deny with words", "deny", option_id, needs_text=True)]


def needs_person(request: Request) -> bool:
    """Return whether a request waits for a person."""
    return request.is_open and request.audience == "human"


def decided(request: Request) -> str:
    """Return how a request was closed, and by whom."""
    by = "" if request.decided_by is None else f" by {person(request.decided_by)}"
    if request.decided_on is not None:
        by += f" on {one_line(request.decided_on)}"
    words = f": {one_line(request.answer)}" if request.answer else ""
    return f"request {request.id} is {request.status}{by}{words}"


# --- events -------------------------------------------------------------------------------------


def answering(kind: str, request_id: str) -> str:
    """Return the command line that answers a request."""
    identity = one_line(request_id)
    if kind == "input_request":
        return f"agentctl request answer {identity} --text TEXT"
    return f"agentctl request approve {identity}  (or deny)"


def extending(request_id: str) -> str:
    """Return the command line that extends a request."""
    return f"agentctl request extend {one_line(request_id)} --expires-in-s 3600"


def _question(data: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return a request's text on one line, the command that answers it, and its id."""
    name = text_of(data, "id") or "REQUEST_ID"
    text = one_line(revealed(text_of(data)[:_LISTED_CHARACTERS]))
    return text, answering(text_of(data, "kind"), name), name


def asked(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the text of a ``request.created`` event, and lines with options and the command to answer."""
    kind = text_of(data, "kind")
    options = _options(data.get("options"))
    more = [f"options: {', '.join(map(_option, options))}"] if options else []
    more += _reaches(options)
    audience = data.get("audience", "human")
    if audience is not None:
        more.append(f"answer: {_question(data)[1]}")
    whom = " its parent" if audience == "parent" else ""
    return f"asks{whom} for {_KINDS.get(kind, 'an answer')}: {revealed(text_of(data))}", more


def escalated(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the text and the command to answer, for a request that was escalated to people."""
    question, answer, _ = _question(data)
    return f"its parent has not answered, so a person is asked: {question}", [f"answer: {answer}"]


def expiring(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the text and the commands for a request that expires soon."""
    question, answer, name = _question(data)
    text = f"not answered yet, expires{_moment(data, 'expires_at')}: {question}"
    return text, [f"answer: {answer}", f"more time: {extending(name)}"]


def extended(data: Mapping[str, Any]) -> str:
    """Return the text for a request that was extended."""
    return f"request {one_line(text_of(data, 'id'))} now expires{_moment(data, 'expires_at')}"


def _moment(data: Mapping[str, Any], name: str) -> str:
    try:
        return f" at {clock(parse_time(text_of(data, name)))}"
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
    if device := text_of(data, "decided_on"):
        text += f" on {one_line(device)}"
    if answer := text_of(data, "answer"):
        text += f": {answer}"
    name = one_line(text_of(data, "id"))
    return status in GRANTED, f"request {name} {text}" if name else text
