"""The screens of agentctl under textual's pilot, on a real daemon."""

import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from attrs import define
from driving import PATIENCE_S, Daemon, running
from textual import events
from textual._time import get_time
from textual.pilot import Pilot
from textual.widget import Widget

from agent_orchestrator.client import Client
from agentctl.connection import connected
from agentctl.output import Output
from agentctl.screens import question_panel
from agentctl.screens.app import DaemonApp
from agentctl.screens.question_panel import QuestionPanel
from agentctl.settings import CallSettings

AGENTS = '''
import anyio
from agent_orchestrator.domain.model import Option, Usage
from agent_orchestrator.ports.runner import Outcome

OPTIONS = [
    Option("yes", "Allow once", "allow_once"),
    Option("always", "Allow for this session", "allow_session", "all of [red]rm[/red] in this session"),
    Option("no", "Deny", "deny"),
]
DIFF = "@@ -1,2 +1,2 @@\\n same\\n-old\\n+new\\n"

async def worker(context):
    """All that an agent shows."""
    tool = {"tool_id": "t", "kind": "command", "name": "shell", "input": {"command": "ls [b]x[/b]"}}
    await context.emit("agent.reasoning", {"text": "first thought\\nsecond thought"})
    steps = [{"text": "look", "status": "completed"}, {"text": "answer", "status": "in_progress"}]
    await context.emit("plan.updated", {"steps": steps})
    await context.emit("tool.started", tool)
    output = "line one\\nline two"
    await context.emit("tool.completed", {**tool, "status": "completed", "output": output, "exit_code": 0})
    change = {"path": "a.py", "kind": "update", "diff": DIFF}
    await context.emit("file.changed", {"tool_id": "f", "status": "completed", "changes": [change]})
    for piece in ("Here **is", "** a ", "<List>"):
        await context.emit("agent.message.delta", {"text": piece, "item_id": "m"})
        await anyio.sleep(0.01)
    await context.emit("agent.message", {"text": "Here **is** a <List>", "item_id": "m"})
    await context.report_usage(Usage(input_tokens=1200, output_tokens=34))
    return Outcome("Here **is** a <List>")

async def asks(context):
    detail = {"type": "command", "command": context.prompt, "cwd": "/work"}
    asked = await context.ask_parent(
        f"Run: {context.prompt}", kind="approval_request", detail=detail, options=OPTIONS
    )
    return f"{asked.status} {asked.option} {asked.answer}"

async def several(context):
    questions = [
        {"id": "colour", "text": "Which colour?", "choices": [{"label": "red", "description": "like fire"}]},
        {"id": "size", "text": "Which size?"},
    ]
    detail = {"type": "question", "questions": questions}
    return str((await context.ask_parent("Tell me", detail=detail)).answer)

async def lasting(context):
    options = [Option("ever", "Always", "allow_always", "everything")]
    asked = await context.ask_parent("May I?", kind="approval_request", options=options)
    return f"{asked.status} {asked.option}"

async def port(context):
    asked = await context.ask_parent("Which port?", options=["8080", "9090"])
    return f"port {asked.answer or asked.option}"

async def waits(context):
    await context.emit("agent.message", {"text": "at work"})
    await anyio.sleep_forever()

async def steered(context):
    await context.emit("agent.message", {"text": "at work"})
    async with context.steering() as messages:
        async for message in messages:
            await context.emit("agent.message", {"text": "steered: " + message})
            return "done"

async def hostile(context):
    text = "\\x1b]0;stolen\\x07\\x1b[2J[red]not red[/red] [@click=app.quit]x[/] \\x9bJ \\u202egnp"
    await context.emit("agent.message", {"text": text})
    await context.emit("tool.completed", {"tool_id": "h", "kind": "function", "name": text,
        "input": {"x": text}, "status": text, "output": text * 3})
    await context.emit("plan.updated", {"steps": [{"text": text, "status": text}, 7, None]})
    await context.emit("file.changed", {"tool_id": "h", "changes": [{"path": text, "kind": text, "diff": text}]})
    await context.emit("run.error", {"message": text})
    for nasty in ("[" * 5000, "*a_ " * 2000, "> " * 3000, "|a" * 900 + "|\\n" + "|-" * 900 + "|\\n", "`a" * 4000):
        await context.emit("agent.message", {"text": nasty})
    await context.emit("agent.message", {"text": "x" * 2_000_000 + "THE END"})
    asked = await context.ask_parent(text, kind="approval_request", detail={"a": [text]})
    return "survived"

async def many(context):
    for number in range(int(context.prompt)):
        await context.emit("agent.message", {"text": f"message {number}"})
'''

NAMES = (
    "worker",
    "several",
    "lasting",
    "asks",
    "port",
    "waits",
    "steered",
    "hostile",
    "many",
)

CONFIG = (
    "".join(
        f'[providers.{name}]\nrunner = "function"\ntarget = "screen_agents:{name}"\n'
        for name in NAMES
    )
    + '[routing]\ndefault = "worker"\n'
)


def crew(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon with these agents, and a user whose private files are here."""
    (directory / "screen_agents.py").write_text(AGENTS)
    monkeypatch.setenv("PYTHONPATH", str(directory))
    monkeypatch.setenv("XDG_STATE_HOME", str(directory / "state"))
    (directory / "crew.toml").write_text(CONFIG)
    yield from running(directory, "--config", "crew.toml")


W = TypeVar("W", bound=Widget)


@define
class Stage:
    """An application on a screen without a terminal."""

    app: DaemonApp
    pilot: Pilot[None]
    client: Client

    @property
    def text(self) -> str:
        """What is on the screen."""
        screen = self.app.screen
        return "\n".join(strip.text for strip in screen._compositor.render_strips())

    def find(self, kind: type[W]) -> W:
        """The widget of a class on the screen."""
        return self.app.screen.query_one(kind)

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.app.failure is None, self.app.failure
            assert time.monotonic() < end, f"never: {what}\n{self.text}"
            await self.pilot.pause(0.02)

    async def shows(self, *texts: str) -> None:
        for text in texts:
            await self.until(lambda text=text: text in self.text, text)

    async def hides(self, text: str) -> None:
        await self.until(lambda: text not in self.text, f"not {text}")

    async def type(self, text: str, *keys: str) -> None:
        names = {" ": "space", "\n": "ctrl+j", "/": "slash"}
        await self.pilot.press(*(names.get(one, one) for one in text), *keys)

    async def press(self, key: str, condition: Callable[[], Any], what: str) -> None:
        """Press until it has worked: what has only just come into view is not answered."""
        for panel in self.app.screen.query(QuestionPanel):
            await self.until(partial(_has_been_seen, panel), "the time to read")
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"never: {what}\n{self.text}"
            await self.pilot.press(key)
            # A second one too early would be for what comes after the answer.
            again = time.monotonic() + (0.1 if key in ("space", "pageup") else 20)
            while not condition() and time.monotonic() < again:
                await self.pilot.pause(0.05)

    async def paste(self, text: str) -> None:
        self.app.post_message(events.Paste(text))
        await self.pilot.pause()

    async def asked(self, *texts: str) -> str:
        """Wait for a question with these texts, and return the id of its request."""
        panel = self.find(QuestionPanel)
        await self.shows(*texts)
        await self.until(lambda: panel.display and panel.request, "a question")
        assert panel.request is not None
        return panel.request.id

    async def answered(self) -> None:
        await self.until(lambda: not self.find(QuestionPanel).display, "the end of the question")


def _has_been_seen(panel: QuestionPanel) -> bool:
    return not panel.display or get_time() > panel._shown_at + question_panel.SEEN_S


def on_stage(
    daemon: Daemon,
    make: Callable[[Any, Output], Awaitable[DaemonApp]],
    play: Callable[[Stage], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
) -> DaemonApp:
    """Run an application, play with it, and return it after its end."""

    async def main() -> DaemonApp:
        settings = CallSettings(url=daemon.ctl.url)
        output = Output(settings)
        async with connected(settings, output) as connection:
            app = await make(connection, output)
            async with app.run_test(size=size) as pilot:
                await play(Stage(app, pilot, connection.client()))
                app.stop()
        assert app.failure is None, app.failure
        return app

    return anyio.run(main)
