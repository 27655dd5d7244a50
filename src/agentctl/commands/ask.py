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
from agentctl.failures import usage_failure
from agentctl.fields import options_of
from agentctl.options import Command, read_id, read_text, session_option


@click.command(
    cls=Command,
    examples="""
    agentctl ask "Why does the build fail?"
    agentctl ask --continue Now fix it
    git diff | agentctl ask - --provider review
    agentctl ask --detach "Run the whole suite"
    agentctl ask "Say hello" --field run.result.text
    """,
)
@click.argument("text", nargs=-1, required=True)
@session_option("Continue this session.  [default: a new one]")
@click.option(
    "--continue",
    "last",
    is_flag=True,
    help="Continue this directory's last session.",
)
@options_of(
    SessionOptions,
    only=("provider", "cwd", "title"),
    cwd="The agent's working directory.  [default: this directory]",
    title="The title of a new session.  [default: the beginning of TEXT]",
)
@options_of(ModelOptions)
@options_of(ImageOptions)
@options_of(ConfinementOptions)
@options_of(Keyed)
@click.option("--detach", is_flag=True, help="Print the ids and leave the run working.")
def ask(
    text: tuple[str, ...],
    session_id: str | None,
    cwd: str | None,
    title: str | None,
    *,
    last: bool,
    detach: bool,
    **values: Any,
) -> None:
    """Ask an agent, watch it work, and print its answer. Words need no quotes. With - as TEXT, read
    standard input.

    Creates a session, or continues one, and shows tool calls, file changes and messages as they
    happen. On a terminal, you answer requests of the agent and its children with keys, and Ctrl-C asks
    whether to cancel the run or to leave it working. If standard output is not a terminal, only the answer
    is printed there, and Ctrl-C cancels the run.

    Exit codes: 0 if the run completed, 1 if it did not, 130 if interrupted. See `agentctl --help`
    for the others.
    """
    call = Call.current()
    if last and session_id:
        raise usage_failure("give only one of --continue and --session-id")
    if title is not None and (last or session_id):
        raise usage_failure("--title is for a new session; see `agentctl session rename`")
    chosen = read_id(session_id) if session_id else None
    words = read_text(" ".join(text))
    directory = working_directory(cwd, local=call.settings.is_local)

    async def body(connection: Any) -> int:
        from agentctl import follow
        from agentctl.ids import last_session

        continued = await last_session(connection, directory) if last else chosen
        return await follow.ask(
            connection,
            words,
            session_id=continued,
            detach=detach,
            new={"cwd": directory, "title": title},
            **values,
        )

    call.run(body)
