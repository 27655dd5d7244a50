"""``agentctl provider``: the agents that agentd can run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentctl.call import Call
from agentctl.failures import Failure, usage_failure
from agentctl.options import Group

if TYPE_CHECKING:
    from agent_orchestrator.testing.agents import Report


@click.group(
    cls=Group,
    examples="""
    agentctl provider list
    agentctl ask --provider demo "What does this project do?"
    agentctl provider check opencode
    """,
)
def provider() -> None:
    """Show the agents that agentd can run, and check how one starts."""


@provider.command(
    "list",
    examples="""
    agentctl provider list
    agentctl --format json provider list
    agentctl provider list --field providers
    """,
)
def list_() -> None:
    """List all providers with their state, version, login and abilities.

    Choose one for a session with --provider NAME.
    """
    call = Call.current()

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations.daemon import STATUS
        from agentctl.views import provider_cards

        found = (await connection.call(STATUS)).providers
        call.output.answer({"providers": found}, lambda: provider_cards(found))

    call.run(body)


@provider.command(
    "check",
    examples="""
    agentctl provider check opencode
    agentctl provider check gemini --record gemini.jsonl
    agentctl provider check mine -- my-agent --acp
    """,
)
@click.argument("name")
@click.argument("argv", nargs=-1)
@click.option(
    "--record",
    type=click.Path(dir_okay=False),
    help="Write the recording to this file, without secrets.",
)
def check(name: str, argv: tuple[str, ...], record: str | None) -> None:
    """Start an agent that speaks ACP, and compare it with the known agents.

    The agent runs here, without agentd, in an empty directory, with your login. The check opens a session, sets
    the mode in which the agent asks, and ends it. No model is asked. The results are compared with the agent's
    row in the table of known agents and with its recording. The exit code is 1 if something differs.

    ARGV is a program with its arguments, for an agent that is unknown or not on the PATH.
    """
    import anyio

    from agent_orchestrator.known_runners import KNOWN_PROVIDERS
    from agent_orchestrator.testing.agents import check_agent, write_start

    output = Call.current(uses_daemon=False).output
    known = KNOWN_PROVIDERS.get(name)
    if known is not None and known.runner != "acp":
        raise usage_failure(
            f"{name} does not speak ACP, so there is no recording to check: its runner tests it before its "
            "first run; see `agentctl provider list`"
        )
    try:
        report = anyio.run(check_agent, name, argv)
    except LookupError:
        raise usage_failure(
            f"no agent {name!r} is known: give its program and arguments after --"
        ) from None
    if record is not None and report.lines:
        try:
            write_start(Path(record), report.lines)
        except ValueError:
            raise Failure(
                "unusable_file",
                f"{record}: is not a recording, and stays as it is: name another file",
            ) from None
    found = {"name": report.name, "version": report.version, "fits": report.fits}
    findings = [{"fits": one.fits, "message": one.message} for one in report.findings]
    output.answer({**found, "findings": findings}, lambda: _lines(report, record))
    if not report.fits:
        raise click.exceptions.Exit(1)


_WORDS = {True: "fits", False: "differs", None: "note"}


def _lines(report: "Report", record: str | None) -> list[str]:
    lines = [f"{_WORDS[one.fits]:8} {one.message}" for one in report.findings]
    if record is not None and report.lines:
        lines.append(f"{len(report.lines)} messages in {record}")
    return lines
