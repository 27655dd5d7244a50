"""Invariants of an engine's records, which hold after any failure.

:func:`history` reads the records and :func:`violations` checks them. Nothing may be recorded meanwhile,
because rows and logs are read one after the other. :func:`stream_violations` checks what a subscriber
received. Only the public client and the public log are used.

A log that retention has shortened begins after its session's ``oldest_cursor``, and may lack pieces of messages
and outputs whose whole follows. Nothing is expected of the events that it no longer has.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from attrs import field, frozen

from agent_orchestrator.client import Client
from agent_orchestrator.domain.events import STATE_AFTER, EventType
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus, is_terminal
from agent_orchestrator.domain.model import MANUAL, Event, Message, Request, Run, Session
from agent_orchestrator.operations.messages import MessageReply
from agent_orchestrator.wire.codec import to_plain

Kind = Literal["lost", "doubled", "gap", "ending", "stale", "replay", "order", "zombie"]
"""The kind of a violation:

``lost``: an acknowledged message is missing. ``doubled``: something exists twice. ``gap``: a log is not
1 … n, or lacks more than retention deletes, or a reader missed or repeated an event. ``ending``: a run does not have exactly one final event,
or has events after it. ``stale``: an older attempt wrote after a newer one. ``replay``: the log and the
rows differ. ``order``: a message was overtaken by a later one. ``zombie``: a run is shown as active, but
no worker has it."""

PAGE: Final = 1000


@frozen
class Violation:
    kind: Kind
    detail: str


@frozen
class Acknowledged:
    """A message that was acknowledged to its sender."""

    message_id: str
    session_id: str
    run_id: str | None
    text: str

    @classmethod
    def of(cls, reply: MessageReply) -> "Acknowledged":
        message = reply.message
        run_id = reply.run.id if reply.run else None
        return cls(message.id, message.session_id, run_id, message.text)


@frozen
class History:
    """All records of an engine.

    :param logs: events by session id.
    :param zombies: ids of active runs without a worker.
    :param may_lack_pieces: whether pieces of messages and outputs may have been deleted.
    """

    sessions: Sequence[Session]
    messages: Sequence[Message]
    runs: Sequence[Run]
    requests: Sequence[Request]
    logs: Mapping[str, Sequence[Event]]
    zombies: Collection[str] = field(default=())
    may_lack_pieces: bool = False

    def shortened(self) -> set[str]:
        """Return the ids of the sessions whose logs have lost their beginning."""
        return {session.id for session in self.sessions if session.oldest_cursor}


async def history(client: Client, *, may_lack_pieces: bool = False) -> History:
    """Return all records that a client may read.

    :param may_lack_pieces: whether retention may have deleted pieces of messages and outputs.
    """
    sessions: list[Session] = []
    cursor: str | None = None
    while True:
        session_page = await client.list_sessions(limit=PAGE, cursor=cursor)
        sessions += session_page.sessions
        if (cursor := session_page.next_cursor) is None:
            break
    messages: list[Message] = []
    for session in sessions:
        while True:
            message_page = await client.list_messages(session.id, limit=PAGE, cursor=cursor)
            messages += message_page.messages
            if (cursor := message_page.next_cursor) is None:
                break
    runs: list[Run] = []
    while True:
        run_page = await client.list_runs(limit=PAGE, cursor=cursor)
        runs += run_page.runs
        if (cursor := run_page.next_cursor) is None:
            break
    requests: list[Request] = []
    while True:
        request_page = await client.requests(limit=PAGE, cursor=cursor)
        requests += request_page.requests
        if (cursor := request_page.next_cursor) is None:
            break
    logs = {session.id: await _log(client, session.id) for session in sessions}
    zombies = await _zombies(client, runs)
    return History(sessions, messages, runs, requests, logs, zombies, may_lack_pieces)


async def _log(client: Client, session_id: str) -> list[Event]:
    log: list[Event] = []
    while True:
        page = await client.list_events(session_id, cursor=log[-1].seq if log else None, limit=PAGE)
        log += page.events
        if not page.has_more:
            return log


async def _zombies(client: Client, runs: Iterable[Run]) -> list[str]:
    zombies = []
    for run in runs:
        if run.status not in ACTIVE or run.provider == MANUAL:
            continue
        if run.status is RunStatus.WAITING and run.worker_id is None:
            continue  # parked: it needs no worker
        diagnosis = await client.diagnose_run(run.id)
        if diagnosis.run.status in ACTIVE and not diagnosis.diagnostics.worker_alive:
            zombies.append(run.id)
    return zombies


def violations(
    records: History,
    *,
    acknowledged: Iterable[Acknowledged] = (),
    unique: Iterable[str] = (),
) -> list[Violation]:
    """Return the violated invariants; an empty list if there are none.

    :param acknowledged: the messages that were acknowledged.
    :param unique: texts that were each sent as a single message, possibly with retries.
    """
    violations = [Violation("zombie", f"run {run_id} has no worker") for run_id in records.zombies]
    violations += _messages(records, acknowledged, unique)
    for session in records.sessions:
        violations += _session(session, records.logs[session.id], records.may_lack_pieces)
    shortened = records.shortened()
    by_run: dict[str, list[Event]] = defaultdict(list)
    for log in records.logs.values():
        for event in log:
            # A device may show a notice after the end of the run.
            if event.run_id is not None and event.event_type != EventType.REQUEST_NOTIFIED:
                by_run[event.run_id].append(event)
    for run in records.runs:
        log = by_run.get(run.id, [])
        if run.session_id not in shortened:
            violations += _run(run, log)
        elif log or not is_terminal(run.status):
            violations += _run(run, log, is_whole=any(map(_begins, log)))
    active = Counter(run.session_id for run in records.runs if run.status in ACTIVE)
    violations += [
        Violation("doubled", f"{count} runs of session {session_id} are active")
        for session_id, count in active.items()
        if count > 1
    ]
    violations += _requests(records)
    violations += _order(records)
    return violations


def _messages(
    records: History, acknowledged: Iterable[Acknowledged], unique: Iterable[str]
) -> Iterator[Violation]:
    rows = {message.id: message for message in records.messages}
    runs = {run.id for run in records.runs}
    for promise in acknowledged:
        row = rows.get(promise.message_id)
        if row is None or (row.session_id, row.text) != (promise.session_id, promise.text):
            yield Violation("lost", f"message {promise.message_id} was acknowledged")
        if promise.run_id is not None and promise.run_id not in runs:
            yield Violation("lost", f"run {promise.run_id} was acknowledged")
    texts = Counter(message.text for message in records.messages)
    for text in unique:
        if texts[text] > 1:
            yield Violation("doubled", f"{texts[text]} messages say {text[:80]!r}")
    yield from _message_events(records, rows)


def _message_events(records: History, rows: Mapping[str, Message]) -> Iterator[Violation]:
    """Yield messages whose events are not as their rows.

    :param rows: the messages by id.
    """
    created = Counter(
        event.data["message_id"]
        for log in records.logs.values()
        for event in log
        if event.event_type == EventType.MESSAGE_CREATED
    )
    shortened = records.shortened()
    for message_id in rows.keys() | created.keys():
        if (
            message_id in rows
            and not created[message_id]
            and rows[message_id].session_id in shortened
        ):
            continue  # its event was deleted
        if created[message_id] != 1 or message_id not in rows:
            presence = "is" if message_id in rows else "is not"
            yield Violation(
                "replay",
                f"message {message_id} has {created[message_id]} events and {presence} there",
            )
    for log in records.logs.values():
        for event in log:
            row = rows.get(event.data.get("message_id", ""))
            if event.event_type == EventType.MESSAGE_CREATED and row is not None:
                stored = (row.session_id, row.role, row.text, to_plain(row.source))
                data = event.data
                if stored != (event.session_id, data["role"], data["text"], data["source"]):
                    yield Violation("replay", f"message {row.id} is not as it was logged")


def _session(session: Session, log: Sequence[Event], may_lack_pieces: bool) -> Iterator[Violation]:
    first = session.oldest_cursor + 1
    seqs = [event.seq for event in log]
    expected = range(first, session.last_seq + 1)
    if may_lack_pieces:
        is_complete = seqs == sorted({*seqs} & {*expected}) and _lacks_only_pieces(session, log)
    else:
        is_complete = seqs == list(expected)
    if not is_complete:
        yield Violation(
            "gap",
            f"the log of {session.id} is not {first} … {session.last_seq}: {_sequence_breaks(seqs, first)}",
        )
    if any(event.session_id != session.id for event in log):
        yield Violation("replay", f"the log of {session.id} holds another's events")
    title, status, cwd = None, "open", session.cwd
    threads: dict[str, str] = {}
    if session.oldest_cursor:  # the events that said so may be gone
        title, status, threads = session.title, session.status, dict(session.threads)
    for event in log:
        match event.event_type:
            case EventType.SESSION_CREATED | EventType.SESSION_UPDATED | EventType.SESSION_CLOSED:
                title = event.data.get("title", title)
                status = event.data.get("status", status)
                cwd = event.data.get("cwd", cwd)
            case EventType.SESSION_IMPORTED:
                status, cwd, threads = event.data["status"], event.data["cwd"], {}
            case EventType.THREAD_STARTED | EventType.THREAD_REPLACED:
                threads[event.data["provider"]] = event.data["thread_id"]
    rows = (session.title, session.status, session.cwd, dict(session.threads))
    if rows != (logged := (title, status, cwd, threads)):
        yield Violation("replay", f"session {session.id} is {rows}, its log says {logged}")


_WHOLES: Final = frozenset({EventType.AGENT_MESSAGE, EventType.TOOL_COMPLETED})


def _lacks_only_pieces(session: Session, log: Sequence[Event]) -> bool:
    """Return whether each gap in a log may be one of pieces: the newest event is there, and a whole follows."""
    if not log or log[-1].seq != session.last_seq:
        return False
    previous, open_gap = session.oldest_cursor, False
    for event in log:
        open_gap |= event.seq != previous + 1
        open_gap &= event.event_type not in _WHOLES
        previous = event.seq
    return not open_gap


def _begins(event: Event) -> bool:
    return event.event_type == EventType.RUN_QUEUED and event.attempt == 1


def _sequence_breaks(seqs: Sequence[int], first: int = 1) -> str:
    """Return a description of the first place where a sequence is not ``first`` … n."""
    for expected, seq in enumerate(seqs, first):
        if seq != expected:
            return f"{seq} stands where {expected} should"
    return f"it ends with {len(seqs)}"


def _run(run: Run, log: Sequence[Event], *, is_whole: bool = True) -> Iterator[Violation]:
    """Yield the violations of a run.

    :param is_whole: False if its first events were deleted.
    """
    newest = ends = 0
    for event in log:
        if ends:
            yield Violation("ending", f"{event.event_type} of run {run.id} after its end")
        if event.attempt is not None and event.attempt < newest:
            yield Violation(
                "stale",
                f"{event.event_type} ({event.seq}) of run {run.id} is of attempt {event.attempt}, "
                f"after one of attempt {newest}",
            )
        newest = max(newest, event.attempt or 0)
        state = STATE_AFTER.get(event.event_type)
        ends += state is not None and is_terminal(state)
    if ends != int(is_terminal(run.status)):
        yield Violation("ending", f"run {run.id} is {run.status} and has {ends} last events")
    started = Counter(e.attempt for e in log if e.event_type == EventType.RUN_STARTED)
    for attempt, count in started.items():
        if count > 1:
            yield Violation("doubled", f"attempt {attempt} of run {run.id} began {count} times")
    for name, logged in _replayed(log).items():
        if logged is None and not is_whole:
            continue
        if (row := to_plain(getattr(run, name))) != logged:
            yield Violation("replay", f"{name} of run {run.id} is {row!r}, its log says {logged!r}")


def _order(records: History) -> Iterator[Violation]:
    """Yield messages whose runs began after the run of a later message. The log has their order.

    Interrupts overtake waiting messages, but are ordered among themselves. A run may return its message
    to the queue, where it is delivered together with a later one. Manual runs may begin at any time.
    """
    runs = {run.id: run for run in records.runs}
    for log in records.logs.values():
        made = [
            event.data["message_id"]
            for event in log
            if event.event_type == EventType.MESSAGE_CREATED
        ]
        places = {message_id: place for place, message_id in enumerate(made)}
        latest = {False: -1, True: -1}
        started: set[str] = set()
        for event in log:
            run = runs.get(event.run_id or "")
            if event.event_type != EventType.RUN_STARTED or event.attempt != 1 or run is None:
                continue
            if run.provider == MANUAL or run.message_id is None or run.message_id in started:
                continue
            started.add(run.message_id)
            if (place := places.get(run.message_id)) is None:
                continue  # which is another violation
            before = latest[run.priority]
            if place < before:
                yield Violation("order", f"message {run.message_id} began after {made[before]}")
            latest[run.priority] = max(before, place)


def _replayed(log: Sequence[Event]) -> dict[str, Any]:
    """Return the fields of a run according to its log."""
    values: dict[str, Any] = dict.fromkeys(("status", "attempt", "result", "error", "usage"))
    for event in log:
        if (state := STATE_AFTER.get(event.event_type)) is not None:
            values["status"], values["attempt"] = str(state), event.attempt
            values["result"], values["error"] = event.data.get("result"), event.data.get("error")
        elif event.event_type == EventType.USAGE_UPDATED:
            values["usage"] = event.data
    return values


def _requests(records: History) -> Iterator[Violation]:
    logged: dict[str, str] = {}
    shortened = records.shortened()
    ended = {run.id for run in records.runs if is_terminal(run.status)}
    for session_id, log in records.logs.items():
        for event in log:
            if event.event_type in (EventType.REQUEST_CREATED, EventType.REQUEST_RESOLVED):
                if event.data["session_id"] != session_id:
                    continue  # a copy in an ancestor's log
                request_id = event.data["id"]
                if logged.get(request_id, "pending") != "pending":
                    yield Violation("doubled", f"request {request_id} was resolved twice")
                logged[request_id] = event.data["status"]
    for request in records.requests:
        logged_status = logged.pop(request.id, None)
        if logged_status is None and not request.is_open and request.session_id in shortened:
            continue
        if logged_status != request.status:
            yield Violation(
                "replay", f"request {request.id} is {request.status}, its log says {logged_status}"
            )
        if request.is_open and request.run_id in ended:
            yield Violation("ending", f"request {request.id} is open, its run has ended")
    for request_id in logged:
        yield Violation("replay", f"request {request_id} is in the log alone")


def stream_violations(
    seen: Sequence[Event], log: Sequence[Event], *, after: int = 0, complete: bool = True
) -> list[Violation]:
    """Return the violations in the events a subscriber of one session received.

    :param log: the session's whole log.
    :param after: the subscriber's first cursor.
    :param complete: True if the subscriber read to the end of the log.
    """
    due = [event for event in log if event.seq > after]
    seqs = [event.seq for event in seen]
    violations = []
    if seqs != [event.seq for event in due[: len(seqs)]]:
        violations.append(
            Violation(
                "gap", f"a subscriber at {after} was given {_sequence_breaks_after(seqs, after)}"
            )
        )
    elif list(seen) != due[: len(seen)]:
        violations.append(
            Violation("replay", "a subscriber was given other events than the log holds")
        )
    if complete and len(seen) < len(due):
        missing = f"{len(seen)} of the {len(due)} events after {after}"
        violations.append(Violation("gap", f"a subscriber was given {missing}"))
    return violations


def _sequence_breaks_after(seqs: Sequence[int], after: int) -> str:
    return _sequence_breaks([seq - after for seq in seqs]) + f" (counted from {after})"
