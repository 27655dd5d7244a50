"""The to-do list of a conversation. Names and shapes are those of Claude Code 2.1.332.

Depending on the model, Claude Code has a tool that writes the whole list (``TodoWrite``), tools that change one task each
(``TaskCreate``, ``TaskUpdate``, ``TaskList``), or none.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field

from agent_orchestrator.runners.events import JsonObject, text

TOOLS: Final = frozenset({"TodoWrite", "TaskCreate", "TaskUpdate", "TaskList"})

_STATUSES: Final = ("pending", "in_progress", "completed")

MAX_TASKS: Final = 1_000


@define
class Plan:
    """The list.

    :ivar tasks: text and status of each task, by its id.
    """

    tasks: dict[str, tuple[str, str]] = field(factory=dict)

    @classmethod
    def kept(cls, value: Any) -> "Plan":
        """Return the list that :meth:`keep` gave; an empty one for another value."""
        found = value if isinstance(value, Mapping) else {}
        return cls(
            {
                key: (text(one[0]), text(one[1]))
                for key, one in found.items()
                if isinstance(one, (list, tuple)) and len(one) == 2
            }
        )

    def keep(self) -> dict[str, list[str]]:
        """Return the list as JSON."""
        return {key: [*one] for key, one in self.tasks.items()}

    def change(self, tool: str, tool_input: JsonObject, result: Any) -> list[dict[str, str]] | None:
        """Apply a successful call of one of :data:`TOOLS`. Return the steps; None if they have not changed.

        :param result: its ``tool_use_result``.
        """
        before = dict(self.tasks)
        found = result if isinstance(result, Mapping) else {}
        match tool:
            case "TodoWrite":
                self._replace(tool_input.get("todos"), "content")
            case "TaskList":
                self._replace(found.get("tasks"), "subject")
            case "TaskCreate":
                self._put(found.get("task"), "subject")
            case "TaskUpdate":
                self._update(text(tool_input.get("taskId")), tool_input)
        if self.tasks == before:
            return None
        return [{"text": said, "status": status} for said, status in self.tasks.values()]

    def _replace(self, tasks: Any, name: str) -> None:
        if isinstance(tasks, list):
            self.tasks = {}
            for task in tasks:
                self._put(task, name)

    def _put(self, task: Any, name: str) -> None:
        if isinstance(task, Mapping) and len(self.tasks) < MAX_TASKS:
            key = text(task.get("id")) or str(len(self.tasks) + 1)
            self.tasks[key] = text(task.get(name)), _status(task.get("status"))

    def _update(self, key: str, changes: JsonObject) -> None:
        said, status = self.tasks.get(key, (f"task {key}", "pending"))
        if changes.get("status") == "deleted":
            self.tasks.pop(key, None)
        elif key in self.tasks or len(self.tasks) < MAX_TASKS:
            changed = changes.get("status")
            self.tasks[key] = (
                text(changes.get("subject")) or said,
                status if changed is None else _status(changed),
            )


def _status(value: Any) -> str:
    return value if value in _STATUSES else "pending"
