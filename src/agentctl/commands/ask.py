"""``agentctl ask``: send a task and show its run."""

from typing import Any

import click

from agent_orchestrator.operations.options import (
    ConfinementOptions,
    ImageOptions,
    Keyed,
    ModelOptions,
)
from agent_orchestrator.operations.sessions import SessionOptions
from agentctl.call import Call
from agentctl.commands.session import working_directory
from agentctl.fields import options_of
from agentctl.options import Command, read_id, read_text


@click.command(
    cls=Command,
    examples="""
    agentctl ask "Why does the build fail?"
    agentctl ask "Now fix it" --session-id ses_01k0
    git diff | agentctl ask - --provider review
    agentctl ask "Say hello" --field run.result.text
    """,
)
@click.argument("text")
@click.option("--session-id", metavar="ID", help="Continue this session.  [default: a new one]")
@options_of(
    SessionOptions,
    only=("provider", "cwd"),
    cwd="The agent's working directory.  [default: this directory]",
)
@options_of(ModelOptions)
@options_of(ImageOptions)
@options_of(ConfinementOptions)
@options_of(Keyed)
def ask(text: str, session_id: str | None, cwd: str | None, **values: Any) -> None:
    """Ask an agent, watch it work, and print its answer. With - as TEXT, read standard input.

    Creates a session, or continues one, and shows tool calls, file changes and messages as they
    happen. If standard output is not a terminal, only the answer is printed there. Ctrl-C cancels
    the run.

    Exit codes: 0 if the run completed, 1 if it did not, 130 if interrupted. See `agentctl --help`
    for the others.
    """
    call = Call.current()
    session_id = read_id(session_id) if session_id else None
    text = read_text(text)
    directory = working_directory(cwd, local=call.settings.is_local)

    async def body(connection: Any) -> int:
        from agentctl import run_commands

        return await run_commands.ask(
            connection, call.output, text, session_id=session_id, cwd=directory, **values
        )

    call.run(body)
