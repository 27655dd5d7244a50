"""Text views of sessions, messages, runs and the daemon. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import attrs

from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.model import MANUAL, Message, Run, Session
from agent_orchestrator.operations.daemon import DaemonStatus, ProviderStatus
from agent_orchestrator.operations.runs import Diagnostics
from agentctl.event_text import image_count, usage_parts
from agentctl.tables import Cell, Column, card, table
from agentctl.terminal import Style, clean, lines_of, one_line, wrapped
from agentctl.times import ago, between, counted, duration, local

STATUS_STYLES: Final[dict[str, tuple[str, ...]]] = {
    "queued": ("dim",),
    "running": ("blue",),
    "waiting": ("yellow",),
    "completed": ("green",),
    "failed": ("red",),
    "canceled": ("yellow",),
    "open": ("green",),
    "closed": ("dim",),
    "ok": ("green",),
    "degraded": ("yellow",),
    "draining": ("yellow",),
    "delivered": ("green",),
    "undeliverable": ("red",),
}


def _status(status: str) -> Cell:
    return Cell(one_line(status), STATUS_STYLES.get(status, ()))


def _when(moment: datetime | None, now: datetime) -> str | None:
    if moment is None:
        return None
    return f"{ago(moment, now)}  ({local(moment):%Y-%m-%d %H:%M:%S})"


def took(run: Run, now: datetime) -> str:
    """Return the duration of a run until its end or ``now``, as text."""
    time_taken = between(run.started_at, run.finished_at or now)
    return duration(time_taken.total_seconds()) if time_taken is not None else ""


def outcome(run: Run) -> str:
    """Return the outcome of a run on one line."""
    if run.error is not None:
        return one_line(f"{run.error.code}: {run.error.message}")
    if run.result is not None:
        return one_line(run.result.text)
    if run.cancel_requested_at is not None and run.finished_at is None:
        return "cancel requested"
    return ""


# --- sessions ---------------------------------------------------------------------------------


def session_card(session: Session, style: Style, now: datetime) -> list[str]:
    threads = ", ".join(f"{name} {thread}" for name, thread in session.threads.items())
    return card(
        f"{style.paint('session', 'dim')} {style.paint(session.id, 'bold')}",
        [
            ("title", one_line(session.title or "")),
            ("status", _status(session.status)),
            ("provider", one_line(session.provider or "(default)")),
            ("model", one_line(session.model or "")),
            ("directory", one_line(session.cwd)),
            ("approvals", session.approvals),
            ("asks", session.approval_policy),
            ("sandbox", session.sandbox),
            ("children", _limits(session)),
            ("parent", session.parent_session_id),
            ("threads", one_line(threads)),
            ("owner", one_line(session.owner)),
            ("events", str(session.last_seq)),
            ("created", _when(session.created_at, now)),
            ("updated", _when(session.updated_at, now)),
        ],
        style,
    )


def _limits(session: Session) -> str:
    limits = [
        (session.max_depth, "generations"),
        (session.max_children, "of a run"),
        (session.max_descendants, "in all"),
    ]
    parts = ", ".join(f"{most} {name}" for most, name in limits if most is not None)
    return parts and f"at most {parts}"


def session_table(sessions: Sequence[Session], style: Style, now: datetime) -> list[str]:
    columns = [
        Column("SESSION"),
        Column("STATUS"),
        Column("PROVIDER"),
        Column("EVENTS", align="right", optional=True),
        Column("UPDATED", align="right"),
        Column("TITLE", flexible=True),
        Column("DIRECTORY", flexible=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            session.id,
            _status(session.status),
            one_line(session.provider or "(default)"),
            f"{session.last_seq:,}",
            ago(session.updated_at, now),
            one_line(session.title or ""),
            one_line(session.cwd),
        ]
        for session in sessions
    ]
    return table(columns, rows, style) or ["no sessions"]


# --- messages ---------------------------------------------------------------------------------


def message_table(messages: Sequence[Message], style: Style, now: datetime) -> list[str]:
    columns = [
        Column("MESSAGE"),
        Column("ROLE"),
        Column("FROM"),
        Column("DELIVERY"),
        Column("SENT", align="right"),
        Column("TEXT", flexible=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            message.id,
            message.role,
            _from(message),
            _status(message.delivery),
            ago(message.created_at, now),
            " ".join(filter(None, [_pictures(message), one_line(message.text[:2000])])),
        ]
        for message in messages
    ]
    return table(columns, rows, style) or ["no messages"]


def _pictures(message: Message) -> str:
    count = image_count(message.images)
    return f"[{count}]" if count else ""


def _from(message: Message) -> str:
    if message.request_id is not None:
        return "decision"
    return "" if message.source.kind == "client" else message.source.kind


def sent_lines(message: Message, run: Run | None, style: Style) -> list[str]:
    where = f"message {style.paint(message.id, 'bold')}"
    if run is None:
        return [where]
    status = style.paint(run.status, *STATUS_STYLES.get(run.status, ()))
    return [f"{where}, run {style.paint(run.id, 'bold')} {status} for {one_line(run.provider)}"]


# --- runs -------------------------------------------------------------------------------------


def run_card(run: Run, style: Style, now: datetime) -> Iterator[str]:
    yield from card(
        f"{style.paint('run', 'dim')} {style.paint(run.id, 'bold')}",
        [
            ("status", _status(run.status)),
            ("session", run.session_id),
            ("provider", one_line(run.provider)),
            ("model", one_line(run.model or "")),
            ("effort", one_line(run.effort or "")),
            ("attempt", str(run.attempt) if run.attempt > 1 else None),
            ("worker", run.worker_id),
            ("thread", one_line(run.thread_id or "")),
            ("waiting on", run.waiting_on),
            ("created", _when(run.created_at, now)),
            ("took" if run.finished_at else "going for", took(run, now)),
            ("used", style.symbol(" · ", ", ").join(_usage(run))),
            ("exit code", None if run.exit_code is None else str(run.exit_code)),
            ("cancel", "requested" if run.cancel_requested_at else None),
        ],
        style,
    )
    yield from outcome_lines(run, style)


def _usage(run: Run) -> list[str]:
    return usage_parts(attrs.asdict(run.usage)) if run.usage is not None else []


def outcome_lines(run: Run, style: Style) -> Iterator[str]:
    """Yield the lines of a run's result or error. There can be very many."""
    if run.error is not None:
        yield ""
        text = clean(f"{run.error.code}: {run.error.message}")
        yield from (style.paint(line, "red") for line in lines_of(text, style.columns))
    elif run.result is not None and run.result.text:
        yield ""
        yield from lines_of(clean(run.result.text), style.columns)


def end_line(run: Run, style: Style, now: datetime) -> str:
    """Return the status of a run on one line."""
    symbols = {"completed": ("✓", "+"), "failed": ("✗", "x"), "canceled": ("■", "x")}
    symbol = style.symbol(*symbols.get(run.status, ("·", "-")))
    status = style.paint(f"{symbol} {run.status}", *STATUS_STYLES.get(run.status, ()))
    time = f" after {took(run, now)}" if run.finished_at and run.started_at else ""
    return style.symbol(" · ", ", ").join([f"run {run.id} {status}{time}", *_usage(run)])


def run_table(
    runs: Sequence[Run], style: Style, now: datetime, *, with_session: bool = True
) -> list[str]:
    columns = [
        Column("RUN"),
        Column("STATUS"),
        Column("PROVIDER"),
        Column("CREATED", align="right"),
        Column("TOOK", align="right"),
        Column("SESSION", optional=True),
        Column("OUTCOME", flexible=True),
    ]
    rows: list[list[str | Cell]] = [
        [
            run.id,
            _status(run.status),
            one_line(run.provider),
            ago(run.created_at, now),
            took(run, now),
            run.session_id if with_session else "",
            outcome(run)[:500],
        ]
        for run in runs
    ]
    return table(columns, rows, style) or ["no runs"]


def diagnosis(run: Run, diagnostics: Diagnostics, style: Style, now: datetime) -> list[str]:
    """Return a run's diagnosis: the likely issue first, then the evidence."""
    issue, counts = diagnostics.likely_issue, diagnostics.queue_counts
    fine = issue.code == "none"
    code = style.paint(issue.code, "green" if fine else "red", "bold")
    invocation = diagnostics.agent_invocation
    worker = diagnostics.worker_id
    if worker and run.provider != MANUAL and run.finished_at is None:
        worker += " (alive)" if diagnostics.worker_alive else " (gone)"
    lines = [
        f"{code}  {line}" if n == 0 else line for n, line in enumerate(_texts(issue.message, style))
    ]
    if issue.hint:
        lines += [style.paint(line, "bold") for line in _texts(issue.hint, style)]
    lines += ["", *card(
        f"run {style.paint(run.id, 'bold')}",
        [
            ("status", _status(run.status)),
            ("session", run.session_id),
            ("provider", one_line(run.provider)),
            ("worker", worker),
            ("workers", f"{diagnostics.alive_workers} of {diagnostics.max_concurrency}"),
            ("queue", _counts(counts.queued_count, counts.running_count, counts.waiting_count)),
            ("position", None if diagnostics.queue_position is None else str(diagnostics.queue_position)),
            ("blocked by", diagnostics.blocked_by_run_id),
            ("pid", None if diagnostics.active_pid is None else str(diagnostics.active_pid)),
            ("thread", one_line(diagnostics.thread_id or "")),
            ("last event", _when(diagnostics.last_event_at, now)),
            ("last output", _when(diagnostics.last_output_at, now)),
            ("directory", one_line(invocation.cwd) if invocation else None),
            ("command", one_line(_command(invocation.argv)) if invocation else None),
        ],
        style,
    )]  # fmt: skip
    if diagnostics.attempts:
        rows: list[list[str | Cell]] = [
            [
                str(attempt.attempt),
                one_line(attempt.provider),
                attempt.worker_id,
                "" if attempt.pid is None else str(attempt.pid),
                ago(attempt.started_at, now),
                _status(attempt.outcome or "going on"),
            ]
            for attempt in diagnostics.attempts
        ]
        titles = ("ATTEMPT", "PROVIDER", "WORKER", "PID", "STARTED", "OUTCOME")
        lines += ["", *table([Column(title) for title in titles], rows, style)]
    if diagnostics.process_tree:
        processes: list[list[str | Cell]] = [
            [str(process.pid), one_line(process.status), one_line(process.command)]
            for process in diagnostics.process_tree
        ]
        columns = [Column("PID", align="right"), Column("STATE"), Column("PROCESS", flexible=True)]
        lines += ["", *table(columns, processes, style)]
    if diagnostics.stderr_tail.strip():
        tail = clean(diagnostics.stderr_tail.rstrip()).splitlines()[-20:]
        lines += ["", style.paint("END OF STDERR", "dim"), *(f"  {line}" for line in tail)]
    return lines


def _texts(text: str, style: Style) -> list[str]:
    return wrapped(clean(text), style.columns)


def _command(argv: Sequence[str]) -> str:
    import shlex

    return shlex.join(argv)


def _counts(queued: int, running: int, waiting: int) -> str:
    return f"{queued} queued, {running} running, {waiting} waiting"


# --- daemon -----------------------------------------------------------------------------------


def daemon_overview(status: DaemonStatus, url: str, style: Style) -> list[str]:
    counts, store = status.queue_counts, status.store
    health = style.paint(status.daemon_health, *STATUS_STYLES.get(status.daemon_health, ()), "bold")
    where = one_line(store.path or "")
    lines = card(
        f"agentd {one_line(status.version)} at {url}: {health}",
        [
            ("running", f"for {duration(status.uptime_s)}, pid {status.pid}"),
            ("workers", f"{status.alive_workers} of {status.max_concurrency} alive"),
            ("runs", _counts(counts.queued_count, counts.running_count, counts.waiting_count)),
            ("store", f"{one_line(store.backend)} {where}".rstrip()),
            ("", f"{counted(store.events, 'event')}, schema {store.schema_version}"),
        ],
        style,
    )
    lines += ["", *provider_table(status.providers, style)]
    for problem in status.problems:
        text = f"{one_line(problem.code)}: {one_line(problem.message)}"
        lines += [
            "",
            *(style.paint(line, "yellow") for line in wrapped(f"! {text}", style.columns)),
        ]
    return lines


def provider_table(providers: Sequence[ProviderStatus], style: Style) -> list[str]:
    rows: list[list[str | Cell]] = [
        [
            Cell(one_line(provider.name), ("bold",)),
            Cell("yes", ("green",)) if provider.available else Cell("no", ("red",)),
            one_line(provider.version or ""),
            _LOGIN[provider.logged_in],
            one_line(provider.mode or provider.runner),
            one_line(" ".join(filter(None, [
                "(default)" if provider.default else "", provider.reason or ""
            ]))),
            ", ".join(_abilities(provider.capabilities)),
        ]
        for provider in providers
    ]  # fmt: skip
    columns = [Column("PROVIDER"), Column("READY"), Column("VERSION"), Column("LOGIN")]
    columns += [Column("RUNNER"), Column("NOTE", flexible=True), Column("CAN", optional=True)]
    return table(columns, rows, style)


def provider_cards(providers: Sequence[ProviderStatus], style: Style) -> list[str]:
    lines: list[str] = []
    for provider in providers:
        ready = "yes" if provider.available else f"no: {provider.reason or 'for an unknown reason'}"
        lines += ["", *card(
            style.paint(one_line(provider.name), "bold") + (" (default)" if provider.default else ""),
            [
                ("ready", Cell(one_line(ready), ("green",) if provider.available else ("red",))),
                ("version", one_line(provider.version or "")),
                ("login", _LOGIN[provider.logged_in]),
                ("runner", one_line(provider.mode or provider.runner)),
                ("can", ", ".join(_abilities(provider.capabilities))),
            ],
            style,
        )]  # fmt: skip
    return lines[1:] or ["no providers"]


_LOGIN: Final[Mapping[bool | None, str]] = {True: "yes", False: "no", None: ""}


def _abilities(capabilities: Capabilities) -> list[str]:
    """Return the names of what a runner can do."""
    return [
        name for name, value in attrs.asdict(capabilities, recurse=False).items() if value is True
    ]
