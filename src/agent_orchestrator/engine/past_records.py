"""Checks of the file of a session, and what is stored of it.

A file is hostile. What it says is checked line by line, and only what is history is used: no directory, no
process, no permission, no conversation of an agent, and no other session.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Protocol, get_args

from attrs import define, evolve, field

from agent_orchestrator.domain.events import STATE_AFTER, EventType
from agent_orchestrator.domain.lifecycle import RunStatus, is_terminal
from agent_orchestrator.domain.model import (
    Attempt,
    Message,
    Request,
    RequestStatus,
    Run,
    Session,
    Source,
)
from agent_orchestrator.domain.search import searchable
from agent_orchestrator.fields import MAX_INTEGER, shown
from agent_orchestrator.ports.changes import line_said
from agent_orchestrator.wire import strict_json
from agent_orchestrator.wire.codec import from_plain, to_plain
from agent_orchestrator.wire.record_checks import IDS, is_time, record_problem, text_problem
from agent_orchestrator.wire.session_file import Reader

MAX_SEQ: Final = 10**9
"""Maximum ``seq`` of an event that is imported: its number counts as used, even if earlier ones are missing."""

CANCEL_REASON: Final = "it had not ended when its session was exported"

_EVENT_TYPE: Final = re.compile(r"[a-z]+([._][a-z]+){0,5}")
_EVENT_FIELDS: Final = frozenset(
    {"seq", "session_id", "run_id", "attempt", "event_type", "data", "created_at"}
)
_HEADER_FIELDS: Final = frozenset(
    {"format", "version", "made_by", "made_at", "session", "pruned", "counts"}
)
_TEXT: Final = (str,)
_MAYBE: Final = (str, type(None))
_REQUEST: Final = dict.fromkeys(("id", "session_id", "run_id", "status", "text"), _TEXT)
_REQUEST_STATUSES: Final = frozenset(get_args(RequestStatus))
_SHAPES: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    EventType.SESSION_CREATED: {"title": _MAYBE, "cwd": _TEXT},
    EventType.MESSAGE_CREATED: {
        "message_id": _TEXT,
        "role": _TEXT,
        "source": (dict,),
        "text": _TEXT,
    },
    EventType.MESSAGE_UPDATED: {"message_id": _TEXT, "delivery": _TEXT},
    EventType.RUN_QUEUED: {"provider": _TEXT, "attempt": (int,)},
    EventType.RUN_STARTED: {"provider": _TEXT, "attempt": (int,)},
    EventType.RUN_COMPLETED: {"attempt": (int,), "result": (dict, type(None))},
    EventType.RUN_FAILED: {"attempt": (int,), "error": (dict,)},
    EventType.RUN_CANCELED: {"attempt": (int,)},
    EventType.CHILD_SPAWNED: {"session_id": _TEXT, "run_id": _TEXT},
    EventType.CHILD_FINISHED: {"session_id": _TEXT, "run_id": _TEXT, "status": _TEXT},
    EventType.REQUEST_NOTIFIED: {"request_id": _TEXT},
    EventType.THREAD_STARTED: {"provider": _TEXT, "thread_id": _TEXT},
    EventType.THREAD_REPLACED: {"provider": _TEXT, "thread_id": _TEXT},
    EventType.REQUEST_CREATED: _REQUEST,
    EventType.REQUEST_UPDATED: _REQUEST,
    EventType.REQUEST_EXPIRING: _REQUEST,
    EventType.REQUEST_EXTENDED: _REQUEST,
    EventType.REQUEST_RESOLVED: _REQUEST,
}
"""The fields that the engine's events must have, because others read them."""


class Spool(Protocol):
    """Keeps checked records until the whole file is checked."""

    def put(self, fields: Mapping[str, Any], text: bytes) -> None:
        """Add a record.

        :param fields: short JSON about it.
        :param text: its long part, as JSON.
        """
        ...


@define
class _LoggedRun:
    """A run, as far as the events say."""

    attempt: int
    status: str
    attempts: int
    has_events: bool = False
    logged_status: str | None = None
    logged_attempt: int | None = None
    ends: int = 0


@define
class PastSession:
    """Takes the lines of a file, and writes what is to be stored to a spool.

    :param new_id: returns the id to store for one of the file; None to keep them all.
    :param id_problem: returns what is wrong with an id that is to be kept.
    """

    reader: Reader
    spool: Spool
    new_id: Callable[[str], str] | None
    id_problem: Callable[[str, str], str | None]
    now: datetime
    session: Session | None = None
    """As in the file, but with its new id."""
    file_id: str = ""
    """The session's id in the file."""
    made_by: str = ""
    made_at: str = ""
    digest: str = ""
    last_seq: int = 0
    unended: list[str] = field(factory=list)
    """Ids of runs that had not ended."""
    pending: list[str] = field(factory=list)
    """Ids of requests that were open."""
    ids: dict[str, str] = field(factory=dict)
    """The ids to store, by those in the file."""
    _runs: dict[str, _LoggedRun] = field(factory=dict)
    _requests: dict[str, str] = field(factory=dict)
    """The states of requests, by their ids in the file."""
    _logged_requests: dict[str, str] = field(factory=dict)
    _messages: set[str] = field(factory=set)
    _needed_messages: dict[str, str] = field(factory=dict)
    """Messages of runs, which come after them, with the run."""
    _count: int = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the file.

        :raises InvalidRequest: naming the line and the field that is wrong.
        """
        for kind, fields in self.reader.feed(data):
            getattr(self, f"_take_{kind}")(fields)

    def finish(self) -> None:
        """Take the end of the file.

        :raises InvalidRequest: if something is missing.
        """
        self.reader.finish()
        if self.session is None or self.last_seq != self.session.last_seq:
            raise self.reader.bad(
                "", f"the log ends with {self.last_seq}, not where the header says"
            )
        is_whole = self._count == self.last_seq
        for run_id, run in self._runs.items():
            if not run.has_events and not is_whole and is_terminal(RunStatus(run.status)):
                continue  # they were deleted
            logged = (run.logged_status, run.logged_attempt)
            if logged != (run.status, run.attempt) or run.ends > 1:
                raise self.reader.bad("", f"run {run_id} is not as the events say: {logged}")
        for request_id, status in self._requests.items():
            was = self._logged_requests.get(request_id)
            if was != status and not (was is None and not is_whole and status != "pending"):
                raise self.reader.bad("", f"request {request_id} is {status}, the events say {was}")
        for message_id, run_id in self._needed_messages.items():
            if message_id not in self._messages:
                raise self.reader.bad("", f"message {message_id} of run {run_id} is missing")

    def _check(self, kind: type, plain: Any, path: str) -> None:
        if problem := record_problem(kind, plain, path):
            raise self.reader.bad(*problem)

    def _only(self, fields: Mapping[str, Any], names: frozenset[str]) -> None:
        for name in fields.keys() ^ names:
            missing = name in names
            problem = "is required" if missing else "is not a field of this line"
            raise self.reader.bad(shown(name), problem)

    def _stored(self, file_id: str, kind: str, path: str) -> str:
        """Return the id to store, which no earlier line has."""
        if file_id in self.ids:
            raise self.reader.bad(path, f"{file_id} comes twice")
        if self.new_id is None and (problem := self.id_problem(kind, file_id)):
            raise self.reader.bad(path, problem)
        if not file_id.startswith(f"{kind}_"):  # else a new id would replace other words
            raise self.reader.bad(path, f"must begin with {kind}_")
        self.ids[file_id] = file_id if self.new_id is None else self.new_id(kind)
        return self.ids[file_id]

    def _take_header(self, fields: dict[str, Any]) -> None:
        self._only(fields, _HEADER_FIELDS)
        for name in ("made_by", "made_at"):
            if not isinstance(fields[name], str) or text_problem(name, fields[name]):
                raise self.reader.bad(name, "must be a short text")
        plain, pruned = fields["session"], fields["pruned"]
        self._check(Session, plain, "session")
        if not isinstance(pruned, dict) or not isinstance(digest := pruned.get("digest"), str):
            raise self.reader.bad("pruned.digest", "must be a text")
        if not re.fullmatch(r"([0-9a-f]{64})?", digest):
            raise self.reader.bad("pruned.digest", "must be a SHA-256 in hexadecimal, or empty")
        session = from_plain(Session, plain)
        if not 1 <= session.last_seq <= MAX_SEQ:
            raise self.reader.bad("session.last_seq", f"must be between 1 and {MAX_SEQ:,}")
        if not 0 <= session.oldest_cursor < session.last_seq:
            raise self.reader.bad("session.oldest_cursor", "must be below `session.last_seq`")
        self.file_id, self.digest = session.id, digest
        self.made_by, self.made_at = fields["made_by"], fields["made_at"]
        self.last_seq = session.oldest_cursor
        self.session = evolve(session, id=self._stored(session.id, "ses", "session.id"))

    def _take_run(self, fields: dict[str, Any]) -> None:
        self._only(fields, frozenset({"run", "attempts"}))
        self._check(Run, fields["run"], "run")
        run = from_plain(Run, fields["run"])
        self._own(run.session_id, "run.session_id")
        if not 1 <= run.attempt <= 10**6:
            raise self.reader.bad("run.attempt", "must be between 1 and 1,000,000")
        run_id = self._stored(run.id, "run", "run.id")
        attempts = self._attempts(fields["attempts"], run_id, run.attempt)
        self._runs[run.id] = _LoggedRun(run.attempt, str(run.status), len(attempts))
        if run.message_id is not None:
            self._needed_messages[run.message_id] = run.id
        if not is_terminal(run.status):
            self.unended.append(run_id)
        self._put("run", {"run": fields["run"], "attempts": fields["attempts"]}, id=run_id)

    def _attempts(self, plain: Any, run_id: str, last: int) -> list[Attempt]:
        if not isinstance(plain, list):
            raise self.reader.bad("attempts", "must be a list")
        found: list[Attempt] = []
        for index, one in enumerate(plain):
            path = f"attempts[{index}]"
            own = {"run_id": "x", "worker_id": "x"}
            if not isinstance(one, dict) or own.keys() & one.keys():
                raise self.reader.bad(path, "must be an object without `run_id` and `worker_id`")
            self._check(Attempt, one | own, path)
            attempt = past_attempt(one, run_id, self.now)
            if not (found[-1].attempt if found else 0) < attempt.attempt <= last:
                raise self.reader.bad(f"{path}.attempt", "must follow the one before")
            found.append(attempt)
        return found

    def _take_message(self, fields: dict[str, Any]) -> None:
        self._only(fields, frozenset({"message"}))
        self._check(Message, fields["message"], "message")
        message = from_plain(Message, fields["message"])
        self._own(message.session_id, "message.session_id")
        self._known_run(message.run_id, "message.run_id")
        message_id = self._stored(message.id, "msg", "message.id")
        self._messages.add(message.id)
        self._put("message", fields["message"], id=message_id)

    def _take_request(self, fields: dict[str, Any]) -> None:
        self._only(fields, frozenset({"request"}))
        self._check(Request, fields["request"], "request")
        request = from_plain(Request, fields["request"])
        self._own(request.session_id, "request.session_id")
        self._known_run(request.run_id, "request.run_id")
        request_id = self._stored(request.id, "req", "request.id")
        self._requests[request.id] = request.status
        if request.is_open:
            self.pending.append(request_id)
        self._put("request", fields["request"], id=request_id)

    def _take_event(self, fields: dict[str, Any]) -> None:
        self._only(fields, frozenset({"event"}))
        plain = fields["event"]
        if not isinstance(plain, dict) or plain.keys() != _EVENT_FIELDS:
            raise self.reader.bad(
                "event", f"must have the fields {', '.join(sorted(_EVENT_FIELDS))}"
            )
        seq, data, event_type = plain["seq"], plain["data"], plain["event_type"]
        assert self.session is not None
        if type(seq) is not int or not self.last_seq < seq <= self.session.last_seq:
            problem = f"must be between {self.last_seq + 1} and {self.session.last_seq}"
            raise self.reader.bad("event.seq", problem)
        self._own(plain["session_id"], "event.session_id")
        self._known_run(plain["run_id"], "event.run_id")
        if not isinstance(plain["created_at"], str) or not is_time(plain["created_at"]):
            raise self.reader.bad("event.created_at", "must be a time")
        if (
            not isinstance(event_type, str)
            or len(event_type) > 64
            or not _EVENT_TYPE.fullmatch(event_type)
        ):
            raise self.reader.bad("event.event_type", "must be words with dots, such as run.queued")
        attempt = plain["attempt"]
        if attempt is not None and (type(attempt) is not int or not 0 <= attempt <= MAX_INTEGER):
            raise self.reader.bad("event.attempt", "must be a number or null")
        self._check_data(event_type, data)
        self._follow(plain, event_type, data)
        self.last_seq = seq
        self._count += 1
        self._put_event(plain, event_type, data)

    def _check_data(self, event_type: str, data: Any) -> None:
        if not isinstance(data, dict):
            raise self.reader.bad("event.data", "must be an object")
        try:
            strict_json.check_readable(data)
        except (ValueError, RecursionError) as error:
            raise self.reader.bad("event.data", str(error)) from None
        for name, kinds in _SHAPES.get(event_type, {}).items():
            value: Any = data.get(name)
            if type(value) not in kinds or (name in IDS and text_problem(name, value)):
                raise self.reader.bad(f"event.data.{name}", f"is not that of {event_type}")

    def _follow(self, plain: Mapping[str, Any], event_type: str, data: Mapping[str, Any]) -> None:
        """Note what an event says of runs and requests."""
        is_request = event_type in (EventType.REQUEST_CREATED, EventType.REQUEST_RESOLVED)
        if is_request and data["session_id"] == self.file_id:  # else a copy from a descendant
            if data["id"] not in self._requests:
                raise self.reader.bad("event.data.id", "is not a request of this file")
            if data["status"] not in _REQUEST_STATUSES:
                raise self.reader.bad("event.data.status", "is not that of a request")
            self._logged_requests[data["id"]] = data["status"]
        if plain["run_id"] is None or event_type == EventType.REQUEST_NOTIFIED:
            return  # a device may show a notice after the end of the run
        run = self._runs[plain["run_id"]]
        if run.ends:
            raise self.reader.bad("event.run_id", f"run {plain['run_id']} had ended before")
        run.has_events = True
        if (status := STATE_AFTER.get(event_type)) is not None:
            run.logged_status, run.logged_attempt = str(status), plain["attempt"]
            run.ends += is_terminal(status)

    def _put_event(self, plain: Mapping[str, Any], event_type: str, data: dict[str, Any]) -> None:
        found, line = searchable(event_type, data), line_said(event_type, data)
        fields = {
            "kind": "event",
            "seq": plain["seq"],
            "run_id": None if plain["run_id"] is None else self.ids[plain["run_id"]],
            "attempt": plain["attempt"],
            "event_type": event_type,
            "at": plain["created_at"],
            "found": None if found is None else [found.kind, found.text],
            "line": line,
        }
        self.spool.put(fields, self._encoded(self.renamed(data), "event.data"))

    def _put(self, kind: str, plain: Any, **fields: str) -> None:
        self.spool.put({"kind": kind, **fields}, self._encoded(plain, kind))

    def _encoded(self, plain: Any, path: str) -> bytes:
        try:
            return strict_json.encode_in_slices(plain)
        except UnicodeEncodeError:
            raise self.reader.bad(path, "has a text that is not valid Unicode") from None
        except ValueError:  # such as 1e999, which is valid JSON
            raise self.reader.bad(path, "has a number that is not finite") from None

    def renamed(self, value: Any) -> Any:
        """Return a value in which each text that is one of the file's ids is the new id."""
        if self.new_id is None:
            return value
        match value:
            case str():
                return self.ids.get(value, value) if len(value) < 200 else value
            case dict():
                return {name: self.renamed(one) for name, one in value.items()}
            case list():
                return [self.renamed(one) for one in value]
        return value

    def request_ids(self) -> set[str]:
        """Return the ids that the requests will have."""
        return {self.ids[request_id] for request_id in self._requests}

    def _own(self, session_id: Any, path: str) -> None:
        if session_id != self.file_id:
            raise self.reader.bad(path, "must be the session of the header")

    def _known_run(self, run_id: Any, path: str) -> None:
        if run_id is not None and (not isinstance(run_id, str) or run_id not in self._runs):
            raise self.reader.bad(path, "is not a run of this file")


def past_attempt(plain: Mapping[str, Any], run_id: str, now: datetime) -> Attempt:
    """Return an attempt that has ended, without its processes."""
    attempt = from_plain(Attempt, {**plain, "run_id": run_id, "worker_id": "imported"})
    return Attempt(
        run_id=run_id,
        attempt=attempt.attempt,
        worker_id="imported",
        provider=attempt.provider,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at or now,
        outcome=attempt.outcome or "canceled",
        delivered_at=attempt.delivered_at,
        stderr_tail=attempt.stderr_tail,
        steerable=attempt.steerable,
    )


def past_run(plain: Mapping[str, Any], session_id: str, now: datetime) -> Run:
    """Return a run that has ended, and that no other one has caused."""
    run = from_plain(Run, plain)
    run = evolve(
        run,
        session_id=session_id,
        parent_run_id=None,
        worker_id=None,
        waiting_on=None,
        holder=None,
        thread_id=None,
    )
    if is_terminal(run.status):
        return run
    canceled = from_plain(Run, {**to_plain(run), "status": "canceled"})
    return evolve(canceled, cancel_reason=CANCEL_REASON, finished_at=now)


def past_message(plain: Mapping[str, Any], session_id: str, requests: set[str]) -> Message:
    """Return a message that nobody will deliver any more, and that counts for no other session."""
    message = from_plain(Message, plain)
    source = Source(message.source.kind, principal=message.source.principal)
    return evolve(
        message,
        session_id=session_id,
        source=source,
        delivery="undeliverable" if message.delivery == "queued" else message.delivery,
        own_run_id=None,
        request_id=message.request_id if message.request_id in requests else None,
    )


def past_request(plain: Mapping[str, Any], session_id: str, now: datetime) -> Request:
    """Return a request that nobody can decide any more."""
    request = from_plain(Request, plain)
    request = evolve(
        request,
        session_id=session_id,
        root_session_id=session_id,
        parent_session_id=None,
        decided_on_id=None,
        wait=False,
        warn_at=None,
        human_at=None,
    )
    if not request.is_open:
        return request
    return evolve(request, status="canceled", resolved_at=now)
