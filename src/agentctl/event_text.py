"""Text for the data of events. No I/O."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event
from agentctl.diffs import changes_of, is_done, objects
from agentctl.terminal import one_line
from agentctl.times import counted

_TASK_CHARACTERS: Final = 500
"""Maximum characters of a child's task. The whole task is in the child's log."""

_SHELLS: Final = frozenset({"sh", "bash", "zsh", "dash"})

_MAX_UNWRAPPED: Final = 20_000
"""Maximum characters of a command that is parsed to remove its shell."""

RUN_ENDS: Final = frozenset({EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_CANCELED})
"""Events that end a run."""


def part(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object in event data; an empty one if it is missing or not an object."""
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


def text_of(data: Mapping[str, Any], name: str = "text") -> str:
    """Return a value in event data as text; empty if it is missing."""
    value = data.get(name)
    return "" if value is None else str(value)


def usage_parts(usage: Mapping[str, Any] | None) -> list[str]:
    """Return a run's token counts and cost as text."""
    if not usage:
        return []
    names = ("input_tokens", "cached_input_tokens", "output_tokens")
    sent, cached, output = (
        count if isinstance(count := usage.get(name), int) else 0 for name in names
    )
    text = f"{counted(sent, 'token')} in" + (f" ({cached:,} cached)" if cached else "")
    cost = usage.get("cost_usd")
    return [f"{text}, {output:,} out", *([f"${cost:.4f}"] if isinstance(cost, int | float) else [])]


def tool_text(data: Mapping[str, Any]) -> str:
    """Return one line about a tool call: the command, or the tool's name with its input."""
    tool_input = part(data, "input")
    name = str(data.get("name") or data.get("kind") or "tool")
    if data.get("kind") == "command" and (command := tool_input.get("command")):
        argv = command if isinstance(command, list | tuple) else None
        return "$ " + bare_command(str(command) if argv is None else shlex.join(map(str, argv)))
    if data.get("kind") == "web_search" and tool_input.get("query"):
        return f"web search: {tool_input['query']}"
    return f"{name} {inline_json(tool_input)}" if tool_input else name


def bare_command(command: str) -> str:
    """Return a command without its shell wrapper (``/bin/bash -lc '…'``)."""
    if len(command) > _MAX_UNWRAPPED or command.split(maxsplit=2)[1:2] not in (["-c"], ["-lc"]):
        return command
    try:
        argv = shlex.split(command)  # quadratic in the length of a word
    except ValueError:
        return command
    return argv[2] if len(argv) == 3 and PurePosixPath(argv[0]).name in _SHELLS else command


def inline_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "), default=str)


_SENTENCES: Final[dict[str, str]] = {
    EventType.SESSION_CREATED: "session created",
    EventType.SESSION_CLOSED: "session closed",
    EventType.SESSION_IMPORTED: "imported: all before this happened elsewhere",
    EventType.RUN_RESUMED: "goes on",
    EventType.RUN_RECOVERED: "recovered",
}


def _settings(data: Mapping[str, Any]) -> list[str]:
    """Return the changed settings of a session that are one word or name each."""
    names = ("title", "model", "sandbox", "approval_policy", "notices", "status")
    return [f"{name.replace('_', ' ')} {data[name]}" for name in names if data.get(name)]


def sentence(event: Event) -> str:
    """Return the text of an event about a session, run or thread, or of an unknown type."""
    data = event.data
    title, thread = data.get("title"), data.get("thread_id")
    match event.event_type:
        case EventType.SESSION_UPDATED:
            settings = ", ".join(_settings(data))
            if data.get("host"):
                settings = ", ".join(filter(None, [settings, f"host {data['host']}"]))
            if data.get("cwd") and data.get("previous_cwd"):
                moved = f"session moved from {data['previous_cwd']} to {data['cwd']}"
                return f"{moved}, {settings}" if settings else moved
            return f"session changed: {settings}" if settings else "session changed"
        case EventType.RUN_QUEUED:
            attempt = data.get("attempt") or 1
            text = "queued" + (f", attempt {attempt}" if attempt != 1 else "")
            return text + (f": {data['reason']}" if data.get("reason") else "") + f" {event.run_id}"
        case EventType.RUN_STARTED:
            # "daemon/worker": within one transcript, the worker is enough.
            worker = str(data.get("worker_id") or "").rpartition("/")[2]
            return "started" + (f" by {worker}" if worker else "")
        case EventType.RUN_WAITING if data.get("held_by"):
            by = "you" if data["held_by"] == "local" else data["held_by"]
            return f"held by {by}, in the agent's own program (process {data.get('pid')})"
        case EventType.RUN_WAITING:
            request_id = data.get("request_id")
            return "waiting for an answer" + (f" to {request_id}" if request_id else "")
        case EventType.THREAD_STARTED:
            return f"thread {thread}"
        case EventType.THREAD_REPLACED:
            return f"new thread {thread} in place of {data.get('previous_thread_id')}"
        case EventType.BACKEND_EVENT:
            return f"{data.get('kind', 'event')} {inline_json(data.get('payload'))}"
    if (words := _SENTENCES.get(event.event_type)) is not None:
        return f"{words}: {title}" if title else words
    return f"{event.event_type} {inline_json(data)}"


def activity_of(event: Event) -> str | None:
    """Return an agent's activity according to an event; None if the event does not show it."""
    match event.event_type:
        case EventType.RUN_QUEUED:
            return "queued"
        case EventType.RUN_STARTED | EventType.RUN_RESUMED:
            return "working"
        case EventType.RUN_WAITING:
            return "waiting for an answer"
        case EventType.TOOL_STARTED:
            return tool_text(event.data)[:2000]
        case EventType.FILE_CHANGED:
            return file_changes(event.data)[0]
        case EventType.AGENT_MESSAGE | EventType.SUBAGENT_MESSAGE | EventType.AGENT_REASONING:
            return text_of(event.data)[:500] or None
    return None


def file_changes(data: Mapping[str, Any]) -> list[str]:
    """Return a line for each changed file, with line counts if known."""
    failed = "" if is_done(data) else f"  ({data.get('status')})"
    first, *rest = [str(change) for change in changes_of(data)] or ["changed files"]
    return [first + failed, *rest]


_BOXES: Final = {"completed": "[x]", "in_progress": "[>]"}

Step = tuple[str, str]
"""The text and the status of a step in a plan."""


def plan_steps(data: Mapping[str, Any]) -> list[Step]:
    """Return the steps in the data of a ``plan.updated`` event."""
    return [
        (one_line(str(step.get("text", ""))), str(step.get("status", "pending")))
        for step in objects(data.get("steps"))
    ]


def plan_text(steps: Sequence[Step], before: Sequence[Step]) -> str:
    """Return the text of a plan: all steps if they changed, otherwise only the progress."""
    if [text for text, _ in steps] != [text for text, _ in before] or not steps:
        return "\n".join(["plan", *(f"{_BOXES.get(now, '[ ]')} {text}" for text, now in steps)])
    done = sum(status == "completed" for _, status in steps)
    current = next((f", now: {text}" for text, now in steps if now == "in_progress"), "")
    return f"plan: {done} of {len(steps)} done{current}"


def tool_outcome(data: Mapping[str, Any]) -> tuple[bool, str, str]:
    """Return whether a tool call succeeded, its status as text, and its output or error."""
    status, code = str(data.get("status", "completed")), data.get("exit_code")
    succeeded = status == "completed" and not code
    status_text = "done" if succeeded else status if status != "completed" else "ended"
    error = data.get("error")
    if isinstance(error, Mapping):
        error = error.get("message", error)
    output = str(data.get("output") or "") or (str(error) if error else "")
    return succeeded, status_text if code is None else f"{status_text}, exit {code}", output


def child_id(data: Mapping[str, Any]) -> str:
    """Return the session id of the child in event data."""
    return one_line(text_of(data, "session_id")) or "a child"


def spawned(data: Mapping[str, Any]) -> str:
    """Return the text of a ``child.spawned`` event."""
    title, task = (
        one_line(text_of(data, "title")),
        one_line(text_of(data, "task")[:_TASK_CHARACTERS]),
    )
    name = f"{title} ({child_id(data)})" if title else child_id(data)
    return f"spawned {name}" + (f": {task}" if task else "")


def child_outcome(data: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return a child run's status, error code, and error message or result."""
    status = one_line(str(data.get("status") or "ended"))
    if error := part(data, "error"):
        return status, one_line(text_of(error, "code")), text_of(error, "message")
    return status, "", text_of(part(data, "result"))


def author(data: Mapping[str, Any]) -> str:
    """Return the author of a message."""
    role, source = str(data.get("role", "user")), part(data, "source")
    kind = source.get("kind", "client")
    if kind != "client" and not data.get("request_id"):
        return one_line(str(kind))
    return person(source.get("principal") or "local") if role == "user" else one_line(role)


def image_count(images: object) -> str:
    """Return the number of a message's images as text; empty if it has none."""
    count = len(images) if isinstance(images, list | tuple) else 0
    return counted(count, "image") if count else ""


def origin(data: Mapping[str, Any]) -> str:
    """Return the origin of a message in addition to its author; empty if there is none."""
    source = part(data, "source")
    if request_id := data.get("request_id"):
        by = source.get("session_id") or source.get("principal")
        return f"decision of {one_line(str(request_id))}" + (f" by {person(by)}" if by else "")
    sender = source.get("session_id")
    return f"from {one_line(str(sender))}" if sender else ""


def person(principal: object) -> str:
    return "you" if principal == "local" else one_line(str(principal))


def concerns_run(event: Event, run_id: str) -> bool:
    """Return whether an event belongs to a run or to a child it spawned.

    Requests always do, because the person who watches may be the one to answer.
    """
    if event.event_type.startswith("request."):
        return True
    if event.event_type in (EventType.CHILD_SPAWNED, EventType.CHILD_FINISHED):
        return event.data.get("parent_run_id") == run_id
    return event.run_id == run_id


def ends_run(event: Event, run_id: str) -> bool:
    """Return whether an event is the last one of a run."""
    return event.run_id == run_id and event.event_type in RUN_ENDS
