"""``agentctl doctor``: what is wrong or dangerous, and what to do about it."""

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
@click.option("--security", is_flag=True, help="Only who may do what.")
@click.argument("options", nargs=-1, metavar="[-- AGENTD_OPTIONS]", type=click.UNPROCESSED)
def doctor(*, security: bool, options: tuple[str, ...]) -> None:
    """Examine agentd: agents and their logins, database, disk, address, tokens, dangerous settings.

    A daemon that runs is asked how it is; an administrator may. Where none runs on this machine,
    what would be started here with these options is looked at. Exit code 1 when something is wrong.
    """
    call = Call.current()
    found = _asked(call)
    if found is None:
        found = _looked_at(call, options)
    findings = [*_own(call), *found.findings]
    if security:
        findings = [one for one in findings if one.security]
    wrong = sum(one.level == "error" for one in findings)
    from agent_orchestrator.operations import Examination
    from agentctl.times import counted

    def rendering(look: Any) -> list[str]:
        from agentctl.findings import findings_list

        return findings_list(findings, look)

    call.output.answer(Examination(not wrong, tuple(findings)), rendering)
    if wrong:
        raise Failure(
            "unsound", f"{counted(wrong, 'thing')} to put right", exit_code=FAILED, hint=None
        )


def _asked(call: Call) -> Any:
    """Return what the daemon says of itself; None where none runs on this machine."""
    found: list[Any] = []

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import EXAMINE

        found.append(await connection.call(EXAMINE))

    try:
        call.run(body)
    except Failure as failure:
        if failure.code != "unreachable" or not call.settings.is_local or _answers(failure):
            raise
        return None
    return found[0]


def _answers(failure: Failure) -> bool:
    """Tell whether something is there, though it cannot be talked to."""
    return "--ca-file" in (failure.hint or "") or "://" in (failure.hint or "")


def _looked_at(call: Call, options: tuple[str, ...]) -> Any:
    """Return what agentd, started here with these options, would find."""
    from attrs import evolve

    from agent_orchestrator.operations import Examination, Finding
    from agent_orchestrator.wire import codec, strict_json
    from agentctl import starting
    from agentctl.progress import waiting

    with waiting(call.output, "agentd looks around"):
        text = starting.examine(call.settings, options)
    told = codec.from_plain(Examination, strict_json.loads(text.encode()))
    absent = Finding(
        "note", "agentd", f"does not run at {call.settings.url}", "agentctl daemon start"
    )
    return evolve(told, findings=(absent, *told.findings))


def _own(call: Call) -> list[Any]:
    """Return what the daemon cannot know: how it is called from here."""
    from agent_orchestrator.operations import Finding

    settings = call.settings
    if settings.url.startswith("https:") or settings.is_local:
        return []
    return [
        Finding(
            "warning",
            "connection",
            f"{settings.url} is on another machine and called without TLS: who listens on the way "
            "reads " + ("your token and " if settings.token else "") + "everything you send",
            f"use https://, or an SSH tunnel: ssh -L 8765:127.0.0.1:8765 {settings.host}",
            security=True,
        )
    ]
