"""The tool calls of an agent, each assembled from several updates."""

import re
from collections.abc import Mapping
from io import StringIO
from typing import Any, Final

from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.values import objects, value_at
from agent_orchestrator.runners.diffs import unified
from agent_orchestrator.runners.events import AgentEvent, JsonObject, agent_event, text
from agent_orchestrator.runners.mcp_messages import TOOL_SERVER
from agent_orchestrator.runners.numbers import exit_code
from agent_orchestrator.wire import strict_json

_MERGED: Final = (
    "title",
    "name",
    "kind",
    "status",
    "rawInput",
    "rawOutput",
    "content",
    "locations",
)

_MERGED_META: Final = ("toolName", "terminal_exit")

_ENDED: Final = ("completed", "failed")

_MCP_PREFIX: Final = "mcp__"

_FILE_KINDS: Final = {"edit": "update", "delete": "delete"}

_MAX_OUTPUT: Final = 16 * 2**20
"""Maximum characters of a command's output in its last event. The ``tool.output`` events have all of it."""


@define
class ToolCall:
    """A tool call so far.

    :ivar own_tool: the orchestration tool that it calls; None if it calls another.
    :ivar is_declined: whether its permission was denied.
    """

    id: str
    agent: AcpAgent
    fields: dict[str, Any] = field(factory=dict)
    meta: dict[str, Any] = field(factory=dict)
    diffs: list[JsonObject] = field(factory=list)
    is_started: bool = False
    is_declined: bool = False
    own_tool: str | None = None
    _own_kind: str | None = None
    _sizes: dict[str, int] = field(factory=dict)
    _output: StringIO = field(factory=StringIO)

    @property
    def size(self) -> int:
        """The number of characters in all its fields."""
        return sum(self._sizes.values()) + self._output.tell()

    @property
    def is_own(self) -> bool:
        """Whether it is a call of an orchestration tool, according to all updates so far."""
        return (
            self.own_tool is not None
            and self.kind == self._own_kind
            and "command" not in self.input
        )

    def merge(self, update: JsonObject) -> None:
        """Add an update, which has only the changed fields. The first title and input of a call are often
        placeholders.
        """
        for name in _MERGED:
            if (value := update.get(name)) is not None:
                self.fields[name] = value
                self._sizes[name] = strict_json.text_length(value)
        if isinstance(meta := update.get("_meta"), Mapping):
            self.meta.update({name: meta[name] for name in _MERGED_META if name in meta})
            self._sizes["_meta"] = strict_json.text_length(self.meta)
        if found := [one for one in objects(update.get("content")) if one.get("type") == "diff"]:
            self.diffs = found
        if self.own_tool is None and (tool := self._own_tool()) is not None:
            self.own_tool, self._own_kind = tool, self.kind

    def add_output(self, piece: str) -> None:
        """Add a piece of a command's output."""
        self._output.write(piece[: max(_MAX_OUTPUT - self._output.tell(), 0)])

    def _own_tool(self) -> str | None:
        own = self.agent.own_tool
        if own is None or (own.kind is not None and self.kind != own.kind):
            return None
        found = re.fullmatch(
            own.pattern, text(value_at({**self.fields, "_meta": self.meta}, own.path.split(".")))
        )
        if found is None:
            return None
        return found[1] if found.groups() else text(value_at(self.input, ["tool"]))

    @property
    def kind(self) -> str:
        return text(self.fields.get("kind")) or "other"

    @property
    def title(self) -> str:
        return text(self.fields.get("title"))

    @property
    def input(self) -> JsonObject:
        raw = self.fields.get("rawInput")
        return raw if isinstance(raw, Mapping) else {} if raw is None else {"input": raw}

    @property
    def command(self) -> str | None:
        """The command line; None if it is another tool."""
        if self.kind != "execute" or "server" in self.input:
            return None
        command = self.input.get("command")
        if isinstance(command, list):
            return " ".join(text(part) for part in command)
        return text(command) or self.title

    @property
    def paths(self) -> list[str]:
        """The paths of its files."""
        found = [
            text(one.get("path")) for one in (*self.diffs, *objects(self.fields.get("locations")))
        ]
        return list(dict.fromkeys(path for path in found if path))

    @property
    def has_ended(self) -> bool:
        return self.fields.get("status") in _ENDED

    @property
    def is_told(self) -> bool:
        """Whether the agent has sent its title and input."""
        if self.fields.get("status") not in (None, "pending"):
            return True
        needed = "command" if self.kind == "execute" else None
        return bool(self.input.get(needed) if needed else self.input)

    @property
    def changes(self) -> list[dict[str, Any]]:
        """The changes of files, as in ``file.changed``; empty if it does not change files."""
        kind = _FILE_KINDS.get(self.kind)
        if kind is None:
            return []
        if not self.diffs:
            return [{"path": path, "kind": kind} for path in self.paths]
        return [change_of(one) for one in self.diffs]

    def started(self) -> AgentEvent | None:
        """Return the event of its start; None for a change of files, which has one event."""
        self.is_started = True
        if self.kind in _FILE_KINDS:
            return None
        return agent_event(EventType.TOOL_STARTED, tool_id=self.id, **self.tool())

    def ended(self, error: str | None = None) -> AgentEvent:
        """Return the event of its end.

        :param error: the error to record if the agent did not report an end.
        """
        status = "completed" if self.fields.get("status") == "completed" else "failed"
        status = "declined" if self.is_declined and status == "failed" else status
        outcome: dict[str, Any] = {"tool_id": self.id, "status": status}
        output = self.output()
        if error is not None:
            outcome["error"] = error
        elif status == "failed" and output:
            outcome["error"] = output[:2_000]
        if changes := self.changes:
            return agent_event(EventType.FILE_CHANGED, **outcome, changes=changes)
        if (exit_code := self._exit_code()) is not None:
            outcome["exit_code"] = exit_code
        return agent_event(EventType.TOOL_COMPLETED, **outcome, **self.tool(), output=output)

    def tool(self) -> dict[str, Any]:
        """Return the kind, name and input of its tool."""
        if (command := self.command) is not None:
            return {"kind": "command", "name": "shell", "input": {"command": command}}
        if self.own_tool is not None:
            arguments = value_at(self.input, ["arguments"])
            own_input = arguments if isinstance(arguments, Mapping) else self.input
            return {"kind": "mcp", "name": f"{TOOL_SERVER}.{self.own_tool}", "input": own_input}
        if "server" in self.input and "tool" in self.input:
            given = f"{text(self.input['server'])}.{text(self.input['tool'])}"
            return {"kind": "mcp", "name": given, "input": self.input}
        name = text(self.fields.get("name")) or text(self.meta.get("toolName"))
        server, _, tool = name.removeprefix(_MCP_PREFIX).partition("__")
        if name.startswith(_MCP_PREFIX) and server and tool:
            return {"kind": "mcp", "name": f"{server}.{tool}", "input": self.input}
        if not name:
            name = self.title if self.kind == "other" else self.kind
        return {"kind": "function", "name": name or "tool", "input": self.input}

    def output(self) -> str:
        if self._output.tell():
            return self._output.getvalue()
        raw = self.fields.get("rawOutput")
        if isinstance(raw, Mapping) and isinstance(raw.get("output"), str):
            return text(raw["output"])
        parts = (one.get("content") for one in objects(self.fields.get("content")))
        texts = [text(part.get("text")) for part in parts if isinstance(part, Mapping)]
        if any(texts):
            return "\n".join(texts)
        return raw if isinstance(raw, str) else ""

    def _exit_code(self) -> int | None:
        contents = objects(value_at(self.fields, ["rawOutput", "contents"]))
        found = (
            value_at(self.fields, ["rawOutput", "metadata", "exit"]),
            value_at(self.fields, ["rawOutput", "exitCode"]),
            value_at(self.meta, ["terminal_exit", "exit_code"]),
            *(one.get("exitCode") for one in contents),
        )
        return next((code for one in found if (code := exit_code(one)) is not None), None)


def change_of(diff: JsonObject) -> dict[str, Any]:
    """Return the change of a file for a diff of the protocol."""
    old, new = diff.get("oldText"), text(diff.get("newText"))
    change = {"path": text(diff.get("path")), "kind": "update"}
    if not isinstance(old, str) or not old:
        return {**change, "kind": "add", "diff": new}
    return {**change, "diff": unified(old, new)}
