"""``agentctl daemon``: control of agentd."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from attrs import evolve

from agent_orchestrator.operations.access import LIST_AUDIT, LIST_TOKENS
from agent_orchestrator.operations.daemon import BACK_UP, CHECK_STORE, STATUS
from agent_orchestrator.operations.devices import ADD_DEVICE
from agentctl.call import Call
from agentctl.failures import TIMED_OUT, Failure
from agentctl.options import MAX_DAEMON_WAIT_S, F, Group, Number
from agentctl.rows import row, view_of


@click.group(
    cls=Group,
    examples="""
    agentctl daemon start
    agentctl daemon status
    agentctl daemon stop --wait
    agentctl daemon backup agents.db
    """,
)
def daemon() -> None:
    """Start, stop, inspect and back up agentd."""


def _timeout(default_s: float, doc: str) -> Callable[[F], F]:
    kind = Number(0, MAX_DAEMON_WAIT_S)
    return click.option("--timeout-s", type=kind, default=default_s, show_default=True, help=doc)


@daemon.command(
    examples="""
    agentctl daemon start
    agentctl daemon start -- --max-concurrency 8 --config agentd.toml
    agentctl --url http://127.0.0.1:9000 daemon start
    """
)
@click.option(
    "--wait/--no-wait",
    default=True,
    help="Wait until agentd answers.  [default: wait]",
)
@_timeout(30.0, "Maximum seconds to wait for its first answer.")
@click.argument("options", nargs=-1, metavar="[-- AGENTD_OPTIONS]", type=click.UNPROCESSED)
def start(*, wait: bool, timeout_s: float, options: tuple[str, ...]) -> None:
    """Start agentd in the background. If it is already running, print that.

    It keeps running when this terminal closes. Its log is agentd.log. The log is beside the
    database if agentd created that directory, and otherwise in the state directory.
    """
    call = Call.current()
    from agent_orchestrator import endpoints
    from agent_orchestrator.user_state import user_state
    from agentctl import daemon_process
    from agentctl.progress import waiting

    if not call.settings.is_local:
        raise Failure(
            "invalid_request",
            f"{call.settings.url} is on another machine",
            hint="start agentd there",
        )
    if not daemon_process.names_address(options) and (status := _running(call)) is not None:
        database = status.store.path
        answer = {
            "url": call.settings.url,
            "pid": status.pid,
            "database": database,
            "already_running": True,
        }
        line = f"agentd runs already at {call.settings.url}, pid {status.pid}, database {database}"
        call.output.answer(answer, lambda: [line])
        return
    before = endpoints.last_endpoint(user_state())
    with waiting(call.output, "agentd is starting"):
        started = daemon_process.start(call.settings, options, timeout_s if wait else None)
    url = started.url or call.settings.url
    database = next(
        (
            endpoint.database
            for endpoint in endpoints.running_endpoints(user_state())
            if endpoint.pid == started.pid
        ),
        None,
    )
    answer = {
        "url": url,
        "pid": started.pid,
        "database": database,
        "log": started.log,
        "already_running": False,
    }

    def view() -> list[Any]:
        from agentctl.document import Card, Text

        shown = [(name, answer[name]) for name in ("url", "pid", "database", "log")]
        return [
            Card(Text("agentd started"), [(name, value and str(value)) for name, value in shown])
        ]

    call.output.answer(answer, view)
    if database is not None and before is not None and before.database != database:
        call.output.announce(
            f"agentctl: the previous daemon used another database, {before.database}: its sessions are "
            f"there when agentd is started in {before.directory}"
        )
    page = wait and call.output.on_terminal and _page(call, url)
    if page:
        _show_page(call, url, page)
    else:
        call.output.hint(f"in a browser: {url}/ (a phone: agentctl device add)")
    if url != call.settings.url and database is None:
        call.output.hint(f"next: export AGENTCTL_URL={url}")
    else:
        call.output.hint('next: agentctl ask "…"')


def _at(call: Call, url: str) -> Call:
    return Call(evolve(call.settings, url=url))


def _page(call: Call, url: str) -> str | None:
    """Return the address of the page of a daemon that just started, if it is reachable from elsewhere."""
    try:
        page: str | None = _at(call, url).ask(STATUS).page
    except Failure:
        return None  # it may need a token
    return page


def _show_page(call: Call, url: str, page: str) -> None:
    """Show the address of the page as a QR code, with an invitation for a device unless tokens are off."""
    from agentctl.qr import device_url, draw
    from agentctl.views import invitation_card

    daemon = _at(call, url)
    try:
        # After the first invitation, every call needs a token. Only the user may decide that.
        has_tokens = bool(daemon.ask(LIST_TOKENS, limit=1).tokens)
        reply = daemon.ask(ADD_DEVICE) if has_tokens else None
    except Failure:
        reply = None
    if reply is None:
        draw(call.output, page)
        call.output.hint(f"in a browser: {page} (a phone: agentctl device add)")
        return
    address = device_url(page, reply.code)
    draw(call.output, address)  # first, so that the code stays in view on a small terminal
    call.output.show(invitation_card(reply, address))


def _running(call: Call) -> Any:
    """Return the status of a daemon at the configured URL; None if none is running."""
    try:
        return _status(call)
    except Failure as failure:
        if failure.code == "unreachable":
            return None
        raise


@daemon.command(
    examples="""
    agentctl daemon stop --wait
    agentctl daemon stop --now
    """
)
@click.option("--wait", is_flag=True, help="Wait until agentd has ended.")
@click.option("--now", is_flag=True, help="Stop running agents at once.")
@_timeout(120.0, "Maximum seconds for --wait. After that, the exit code is 7.")
def stop(*, wait: bool, now: bool, timeout_s: float) -> None:
    """Stop agentd. It refuses new work, gives running agents its grace period to finish, and ends.

    Queued runs stay in the queue until the next start. With --wait, print how many of the active
    runs finished, returned to the queue, or continue to wait for an answer.
    """
    call = Call.current()
    from agentctl import daemon_process
    from agentctl.progress import waiting

    status = _status(call)
    process = daemon_process.process_of(status)
    daemon_process.terminate(process, now=now)
    with waiting(call.output, "agentd is stopping"):
        stopped = wait and daemon_process.await_end(process, timeout_s)
    report = daemon_process.stop_report(status) if stopped else None
    running = status.queue_counts.running_count
    answer = {"pid": status.pid, "stopped": stopped, "running_count": running, "drain": report}
    line = _stopped(status.pid, report) if stopped else _stopping(status.pid, running)
    call.output.answer(answer, lambda: [line])
    if wait and not stopped:
        raise Failure(
            "timeout",
            f"agentd, pid {status.pid}, still runs after {timeout_s:g} s",
            exit_code=TIMED_OUT,
            hint="`agentctl daemon stop --now` stops running agents at once",
        )


def _stopped(pid: int, report: dict[str, Any] | None) -> str:
    from agentctl.times import counted

    line = f"agentd, pid {pid}, has stopped"
    if report is None:
        return line
    parts = []
    if report["finished"]:
        parts.append(f"{counted(report['finished'], 'run')} finished")
    if report["released"]:
        parts.append(f"{counted(len(report['released']), 'run')} went back to the queue")
    if report["parked"]:
        parts.append(f"{counted(len(report['parked']), 'run')} wait for an answer")
    return f"{line}: {', '.join(parts)}" if parts else line


def _stopping(pid: int, running: int) -> str:
    from agentctl.times import counted

    line = f"agentd, pid {pid}, is stopping"
    return (
        f"{line} once {counted(running, 'run')} finished or its grace is over" if running else line
    )


def _status(call: Call) -> Any:
    return call.ask(STATUS)


@daemon.command(
    examples="""
    agentctl daemon status
    agentctl --format json daemon status
    agentctl daemon status --field queue_counts.queued_count
    """
)
def status() -> None:
    """Show the state of agentd, its workers, queue, providers and store."""
    call = Call.current()
    reply = _status(call)

    def view() -> list[Any]:
        from agentctl.views import daemon_overview

        return daemon_overview(reply, call.settings.url)

    call.output.answer(reply, view)


def _absolute(call: Call, values: dict[str, Any]) -> dict[str, Any]:
    file = values.pop("file")
    return values | {"path": str(Path(file).absolute()) if call.settings.is_local else file}


row(
    daemon,
    "backup",
    BACK_UP,
    "{path}: {size:,} bytes",
    """Back up agentd's database to FILE while agentd runs. The copy is consistent, checked, and
    flushed to disk.

    agentd writes FILE, on its machine. To restore a copy, stop agentd, replace the database with
    the copy, and remove the old -wal and -shm files.
    """,
    """
    agentctl daemon backup agents-2026-01-31.db
    agentctl daemon backup /var/backups/agents.db --force
    """,
    without=("path",),
    prepare=_absolute,
    extra=(click.argument("file", type=click.Path()),),
    force="Replace an existing backup. Never replaces any other file.",
)


@daemon.command(
    examples="""
    agentctl daemon check
    agentctl daemon check --field findings
    """
)
def check() -> None:
    """Check agentd's database while agentd runs: that it is intact, and that its log agrees with
    its data.

    The exit code is 1 if something is wrong.
    """
    call = Call.current()
    reply = call.ask(CHECK_STORE)
    from agentctl.times import counted

    call.output.answer(reply, lambda: view_of("views:checked_lines", reply))
    if not reply.ok:
        raise Failure(
            "damaged",
            f"{counted(len(reply.findings), 'finding')} in the database",
            hint="restore a backup, or report what was found",
        )


row(
    daemon,
    "audit",
    LIST_AUDIT,
    "views:audit_table:entries",
    """List the audit trail. Needs the scope admin.

    It records decisions about requests, cancels, transitions, closes, tokens, shares, exports,
    imports, deletions of events, and refused calls of agents, each with the caller.
    """,
    """
    agentctl daemon audit
    agentctl daemon audit --order oldest --limit 20
    agentctl --format json daemon audit --field entries
    """,
)
