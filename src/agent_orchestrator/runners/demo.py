"""The built-in demo agent. It shows a run without a real agent."""

import re
import uuid
from typing import Final

import anyio
from attrs import frozen

from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Usage
from agent_orchestrator.ports.runner import Outcome, RunContext

FILE: Final = "agent-orchestrator-demo.txt"
"""The file that it writes into the session's working directory."""

_STEPS: Final = ("Look at the working directory", f"Write {FILE}", "Answer")


@frozen
class DemoRunner:
    """An agent within the process. It uses no model, and its messages say so.

    :param pause_s: seconds between its steps, so that a person can watch them.
    """

    name: str = "demo"
    pause_s: float = 0.12

    @property
    def capabilities(self) -> Capabilities:
        """The runner's capabilities."""
        return Capabilities(protect=True)

    async def run(self, context: RunContext) -> Outcome:
        """Introduce itself, list the directory, write a file, and answer."""
        await context.delivered()
        count = await self._remember(context)
        await context.emit(
            EventType.AGENT_MESSAGE,
            {
                "text": "I am the built-in demo agent. I ask no model. I only show what an"
                " agent's run looks like.",
                "item_id": "hello",
            },
        )
        await self._plan(context, 0)
        await self._list_files(context)
        await self._plan(context, 1)
        wrote = await self._write(context, count)
        await self._plan(context, 2)
        ordinal = "first message" if count == 1 else f"message number {count}"
        text = (
            f"You wrote {len(context.prompt):,} characters, the {ordinal} of this conversation. "
            f"{wrote} With a real agent, its answer would be here."
        )
        for piece in re.findall(r"\S+\s*", text):
            await context.emit(EventType.AGENT_MESSAGE_DELTA, {"text": piece, "item_id": "answer"})
            await anyio.sleep(self.pause_s / 8)
        await context.emit(EventType.AGENT_MESSAGE, {"text": text, "item_id": "answer"})
        await self._plan(context, 3)
        await context.report_usage(
            Usage(input_tokens=len(context.prompt.split()), output_tokens=len(text.split()))
        )
        return Outcome(text)

    async def _remember(self, context: RunContext) -> int:
        """Return how many messages the conversation has had, this one included."""
        thread = context.thread
        previous = thread.state.get("messages", 0) if thread else 0
        count = previous + 1 if isinstance(previous, int) else 1
        thread_id = thread.id if thread else f"demo-{uuid.uuid4().hex}"
        await context.set_thread(thread_id, {"messages": count})
        return count

    async def _plan(self, context: RunContext, done: int) -> None:
        states = ["completed"] * done + ["in_progress"] + ["pending"] * len(_STEPS)
        steps = [
            {"text": text, "status": state} for text, state in zip(_STEPS, states, strict=False)
        ]
        await context.emit(EventType.PLAN_UPDATED, {"steps": steps})
        await anyio.sleep(self.pause_s)

    async def _list_files(self, context: RunContext) -> None:
        tool = {
            "tool_id": "look",
            "kind": "function",
            "name": "list_directory",
            "input": {"path": context.session.cwd},
        }
        await context.emit(EventType.TOOL_STARTED, tool)
        await anyio.sleep(self.pause_s)
        try:
            names = sorted(
                [entry.name async for entry in anyio.Path(context.session.cwd).iterdir()]
            )
        except OSError as error:
            await context.emit(
                EventType.TOOL_COMPLETED,
                {**tool, "status": "failed", "output": "", "error": str(error)},
            )
            return
        output = "".join(f"{name}\n" for name in names[:20])
        if len(names) > 20:
            output += f"and {len(names) - 20} more\n"
        # A file name is bytes. Bytes that are not UTF-8 must not reach the log.
        output = output.encode("utf-8", "replace").decode() or "(empty)\n"
        await context.emit(EventType.TOOL_OUTPUT, {"tool_id": "look", "text": output})
        await context.emit(
            EventType.TOOL_COMPLETED, {**tool, "status": "completed", "output": output}
        )

    async def _write(self, context: RunContext, count: int) -> str:
        """Write the file and return a sentence about it."""
        path = anyio.Path(context.session.cwd) / FILE
        try:
            kind = "update" if await path.exists() else "add"
            await path.write_text(f"Written by the demo agent of agent-orchestrator: {count}.\n")
        except OSError as error:
            await context.emit(
                EventType.RUN_ERROR, {"message": f"cannot write {path}: {error.strerror}"}
            )
            return f"I could not write {FILE}: {error.strerror}."
        await context.emit(
            EventType.FILE_CHANGED,
            {
                "tool_id": "write",
                "status": "completed",
                "changes": [{"path": str(path), "kind": kind}],
            },
        )
        return f"I wrote {FILE}."
