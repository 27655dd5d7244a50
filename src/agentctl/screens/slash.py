"""The commands of ``agentctl chat`` that begin with a slash."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, get_args

from textual.app import ComposeResult
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from agent_orchestrator.domain.model import Sandbox
from agent_orchestrator.operations.daemon import STATUS
from agent_orchestrator.operations.messages import SPAWN_FROM_SESSION
from agent_orchestrator.operations.runs import CANCEL_RUN, LIST_RUNS
from agent_orchestrator.operations.sessions import UPDATE_SESSION, SessionTree
from agentctl.event_text import usage_parts
from agentctl.paging import pages, tree_pages
from agentctl.screens.app import Failed
from agentctl.screens.text import line
from agentctl.times import counted

if TYPE_CHECKING:
    from agentctl.screens.chat import ChatScreen

HELP: Final = """\
/model [NAME]      show the model, or use another from the next message on
/sandbox [VALUE]   read-only, workspace-write or danger-full-access
/status            the session, its runs and usage, and the daemon
/tree              the session and its children; enter opens one
/spawn TASK        give a task to a new child
/cancel            cancel the runs of this session and of its children
/attach            go on in the agent's own program; leave it to come back
/quit              quit; runs go on

enter sends, ctrl+j breaks the line · up and down: what you typed before
shift+tab: queue, steer or interrupt while the agent works
tab: answer a question · escape: back to the parent
ctrl+o: unfold all · ctrl+up, ctrl+down: go to a card, enter unfolds it
paste the path of an image to send it · ctrl+c twice or ctrl+d: quit
A text that begins with a space is never a command."""


class TreeScreen(ModalScreen[str | None]):
    """A list of the sessions of a tree."""

    BINDINGS = [("escape", "dismiss(None)", "Close")]  # noqa: RUF012

    def __init__(self, tree: SessionTree) -> None:
        super().__init__()
        self._tree = tree

    def compose(self) -> ComposeResult:
        """Make a row for each session."""
        yield OptionList(*self._rows(self._tree, 0), markup=False)

    def _rows(self, branch: SessionTree, depth: int) -> list[Option]:
        session, last = branch.session, next(reversed(branch.runs), None)
        state = "no run" if last is None else last.status
        name = line(session.title or session.id, 60)
        text = Content.assemble("  " * depth, name, (f"  {state}  {session.id}", "dim"))
        below = [row for child in branch.children for row in self._rows(child, depth + 1)]
        return [Option(text, id=session.id), *below]

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Choose a session."""
        self.dismiss(event.option.id)


async def _model(chat: "ChatScreen", words: str) -> None:
    if words and not await _change(chat, "model", words):
        return
    model = chat.options.get("model") or (chat.session and chat.session.model)
    await chat.note(f"model: {line(model or 'the default of the provider')}")


async def _change(chat: "ChatScreen", name: str, value: str) -> bool:
    """Set an option of the session, or of a new session before its first message. Return False if that was refused."""
    if chat.session is None:
        chat.options[name] = value
    else:
        call = chat.app.connection.call(
            UPDATE_SESSION, session_id=chat.id_of_session, **{name: value}
        )
        reply = await chat.app.attempt(call)
        if isinstance(reply, Failed):
            return False
        chat.session = reply.session
        chat.options.pop(name, None)
    chat.show_state()
    return True


async def _sandbox(chat: "ChatScreen", words: str) -> None:
    if words and words not in get_args(Sandbox):
        chat.app.say(f"the sandbox is one of {', '.join(get_args(Sandbox))}")
        return
    if words and not await _change(chat, "sandbox", words):
        return
    sandbox = (chat.session and chat.session.sandbox) or chat.options.get("sandbox")
    await chat.note(f"sandbox: {sandbox or 'the default of the provider'}")


async def _status(chat: "ChatScreen", _: str) -> None:
    connection = chat.app.connection
    daemon = await chat.app.attempt(connection.call(STATUS))
    if isinstance(daemon, Failed):
        return
    lines = [f"agentd {daemon.version} is {daemon.daemon_health}"]
    lines += [line(problem.message) for problem in daemon.problems]
    if chat.session is not None:
        page = await chat.app.attempt(pages(connection, LIST_RUNS, session_id=chat.session.id))
        if isinstance(page, Failed):
            return
        used = [run.usage for run in page.runs if run.usage is not None]
        names = ("input_tokens", "cached_input_tokens", "output_tokens")
        total = {name: sum(getattr(one, name) for one in used) for name in names}
        costs = [one.cost_usd for one in used if one.cost_usd is not None]
        parts = usage_parts(total | ({"cost_usd": sum(costs)} if costs else {}))
        lines += [f"session {chat.session.id} in {line(chat.session.cwd)}"]
        lines += [" · ".join([counted(len(page.runs), "run"), *parts])]
        lines += [f"{run.id} is {run.status}" for run in chat.runs.values()]
    await chat.note("\n".join(lines))


async def _tree(chat: "ChatScreen", _: str) -> None:
    call = tree_pages(chat.app.connection, chat.id_of_session, None, None)
    tree = await chat.app.attempt(call)
    if isinstance(tree, Failed):
        return
    chosen = await chat.app.push_screen_wait(TreeScreen(tree))
    if chosen is not None and chosen != chat.id_of_session:
        await chat.open_session(chosen)


async def _spawn(chat: "ChatScreen", words: str) -> None:
    if not words:
        chat.app.say("give the task: /spawn TASK")
        return
    call = chat.app.connection.call(SPAWN_FROM_SESSION, session_id=chat.id_of_session, task=words)
    await chat.app.attempt(call)


async def _cancel(chat: "ChatScreen", _: str) -> None:
    runs = list(chat.runs.values())
    for run in runs:
        await chat.app.attempt(chat.app.connection.call(CANCEL_RUN, run_id=run.id))
    if not runs:
        chat.app.say("no run to cancel")


async def _attach(chat: "ChatScreen", _: str) -> None:
    if not chat.app.leave_terminal_to("attach", chat.id_of_session):
        await chat.note(f"quit, then: agentctl attach {chat.id_of_session}")


async def _help(chat: "ChatScreen", _: str) -> None:
    await chat.note(HELP)


async def _quit(chat: "ChatScreen", _: str) -> None:
    chat.app.stop()


_COMMANDS: Final[dict[str, Callable[["ChatScreen", str], Awaitable[None]]]] = {
    "model": _model,
    "sandbox": _sandbox,
    "status": _status,
    "tree": _tree,
    "spawn": _spawn,
    "cancel": _cancel,
    "attach": _attach,
    "help": _help,
    "quit": _quit,
}

_NEED_SESSION: Final = ("tree", "spawn", "attach")


async def run_command(chat: "ChatScreen", name: str, words: str) -> None:
    """Run a command."""
    command = _COMMANDS.get(name)
    if command is None:
        chat.app.say(f"there is no command /{line(name, 30)}: /help lists them")
    elif chat.session is None and name in _NEED_SESSION:
        chat.app.say("the session begins with your first message")
    else:
        await command(chat, words)
