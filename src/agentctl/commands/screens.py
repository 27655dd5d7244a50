"""``agentctl chat`` and ``top``: full screens."""

from typing import Any

import click

from agent_orchestrator.operations.sessions import GET_SESSION, SessionOptions
from agentctl.call import Call
from agentctl.commands.session import working_directory
from agentctl.failures import usage_failure
from agentctl.fields import options_of
from agentctl.options import Command, read_id, session_option
from agentctl.screens import require_terminal


@click.command(
    cls=Command,
    examples="""
    agentctl chat
    agentctl chat --continue
    agentctl chat --provider codex --model gpt-5
    agentctl chat --session-id ses_01k0
    """,
)
@session_option("Continue this session.  [default: a new one]")
@click.option(
    "--continue", "is_continued", is_flag=True, help="Continue this directory's last session."
)
@options_of(
    SessionOptions,
    only=("provider", "model", "cwd"),
    cwd="The agent's working directory.  [default: this directory]",
)
def chat(session_id: str | None, is_continued: bool, cwd: str | None, **options: Any) -> None:
    """Talk with an agent on a full screen.

    Shows messages, tool calls, changes of files, plans and requests as they happen. Quitting cancels
    nothing: `agentctl chat --continue` goes on. /help shows the keys and the commands.
    """
    call = Call.current()
    require_terminal(call.settings, "chat", "`ask`, `message send` and `events tail`")
    if session_id is not None and is_continued:
        raise usage_failure("give only one of --continue and --session-id")
    session_id = read_id(session_id) if session_id else None
    directory = working_directory(cwd, local=call.settings.is_local)
    chosen = {name: value for name, value in options.items() if value is not None}

    async def body(connection: Any) -> None:
        from agentctl.ids import last_session
        from agentctl.screens.app import show
        from agentctl.screens.chat import ChatApp

        session = None
        name = await last_session(connection, directory) if is_continued else session_id
        if name is not None:
            session = (await connection.call(GET_SESSION, session_id=name)).session
        values = dict(chosen, cwd=directory) if session is None else chosen
        app = ChatApp(connection, call.output, session, values)
        await show(app)
        call.output.announcer = None
        if (last := app.chat.session) is not None:
            going = "the run goes on; " if app.chat.runs else ""
            call.output.note(
                f"agentctl: {going}continue with `agentctl chat --session-id {last.id}`"
            )

    call.run(body)


@click.command(
    cls=Command,
    examples="""
    agentctl top
    agentctl top --session-id ses_01k0
    agentctl --url http://127.0.0.1:9000 top
    """,
)
@session_option("Only this session's tree.  [default: everything]")
def top(session_id: str | None) -> None:
    """Watch requests and runs on a full screen, and answer, cancel or open them.

    Keys: up and down select; space scrolls a long request, and the keys under it answer it; enter
    opens the conversation, escape closes it; c cancels a run; f shows finished runs; t shows only the
    selected tree; q quits.
    """
    call = Call.current()
    require_terminal(call.settings, "top", "`run list`, `request list` and `events tail`")
    session_id = read_id(session_id) if session_id else None

    async def body(connection: Any) -> None:
        from agentctl.screens.app import show
        from agentctl.screens.top import TopApp

        root = None
        if session_id is not None:
            root = (await connection.call(GET_SESSION, session_id=session_id)).session
        await show(TopApp(connection, call.output, root))

    call.run(body)
