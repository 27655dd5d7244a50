"""``agentctl doctor``: a check for errors and risks."""

from typing import Any

import click

from agentctl.call import Call
from agentctl.failures import FAILED, Failure
from agentctl.options import Command


@click.command(
    "doctor",
    cls=Command,
    examples="""
    agentctl doctor
    agentctl doctor --security
    agentctl doctor --format json
    agentctl doctor -- --config /etc/agentd.toml --db /var/lib/agents.db
    """,
)
@click.option("--security", is_flag=True, help="Check access settings only.")
@click.argument("options", nargs=-1, metavar="[-- AGENTD_OPTIONS]", type=click.UNPROCESSED)
def doctor(*, security: bool, options: tuple[str, ...]) -> None:
    """Check agentd: agents and their logins, database, disk, address, tokens, and dangerous
    settings.

    A running daemon checks itself, which needs the scope admin. If no daemon runs on this machine,
    check what `agentctl daemon start` would start with these options. The exit code is 1 if
    something is wrong.
    """
    call = Call.current()
    report = _daemon_report(call)
    if report is None:
        report = _offline_report(call, options)
    findings = [*_client_findings(call), *report.findings]
    if security:
        findings = [finding for finding in findings if finding.security]
    wrong = sum(finding.level == "error" for finding in findings)
    from agent_orchestrator.operations.daemon import DoctorReport
    from agentctl.times import counted

    def view() -> list[Any]:
        from agentctl.views import findings_list

        return findings_list(findings)

    call.output.answer(DoctorReport(not wrong, tuple(findings)), view)
    if wrong:
        raise Failure("unsound", f"{counted(wrong, 'problem')} to fix", exit_code=FAILED, hint=None)


def _daemon_report(call: Call) -> Any:
    """Return the daemon's report; None if no daemon is running on this machine."""
    from agent_orchestrator.operations.daemon import DOCTOR

    try:
        return call.ask(DOCTOR)
    except Failure as failure:
        if failure.code != "unreachable" or not call.settings.is_local or _is_answering(failure):
            raise
        return None


def _is_answering(failure: Failure) -> bool:
    """Return whether something answers, although the connection failed."""
    return "--ca-file" in (failure.hint or "") or "://" in (failure.hint or "")


def _offline_report(call: Call, options: tuple[str, ...]) -> Any:
    """Return the report of ``agentd --doctor`` with these options."""
    from attrs import evolve

    from agent_orchestrator.operations.daemon import DoctorReport, Finding
    from agent_orchestrator.wire import codec, strict_json
    from agentctl import daemon_process
    from agentctl.progress import waiting

    with waiting(call.output, "agentd checks itself"):
        text = daemon_process.offline_doctor(call.settings, options)
    report = codec.from_plain(DoctorReport, strict_json.loads(text.encode()))
    absent = Finding(
        "note", "agentd", f"does not run at {call.settings.url}", "agentctl daemon start"
    )
    return evolve(report, findings=(absent, *report.findings))


def _client_findings(call: Call) -> list[Any]:
    """Return findings about the client's connection, which the daemon cannot know."""
    from agent_orchestrator.operations.daemon import Finding

    settings = call.settings
    if settings.url.startswith("https:") or settings.is_local:
        return []
    return [
        Finding(
            "warning",
            "connection",
            f"{settings.url} is on another machine and called without TLS: anyone on the network "
            "path can read "
            + ("your token and " if settings.token else "")
            + "everything you send",
            f"use https://, or an SSH tunnel: ssh -L 8765:127.0.0.1:8765 {settings.host}",
            security=True,
        )
    ]
