"""The kinds of events a session's log holds, and what the data of each says.

An event's type is an open set: a reader keeps a type it does not know. The constants are the ones
this version writes or reserves. A field in brackets is not always there. What becomes of sessions
and runs:

=====================  ===========================================================================
type                   data
=====================  ===========================================================================
session.created        title, provider, cwd; of a child: [parent_session_id, parent_run_id]
session.updated        what was changed, of: [title, metadata, status, approval_policy, sandbox, cwd];
                       with cwd: previous_cwd, the directory its agents worked in before
session.closed         the same
message.created        message_id, role, source {kind, session_id, run_id, principal}, text, [request_id]: the request whose decision it tells, [images]: media_type, size and digest of each
run.queued             provider, attempt, [message_id], [reason]: why it is back in the queue
run.started            provider, attempt, worker_id
run.waiting            request_id, [parked]: true once its agent is gone
run.resumed            request_id
run.recovered          attempt, action, reason, worker_id, delivered, ended_processes: the daemon was
                       lost while it was at work
run.completed          attempt, result {text}, [exit_code], [usage]
run.failed             attempt, error {code, message}, [exit_code], [usage]
run.canceled           attempt, [reason], [exit_code], [usage]
child.spawned          session_id, run_id, parent_run_id, title, task, [cut]: of the child; the task
                       has at most 1,000 characters
child.finished         session_id, run_id, parent_run_id, status, result, error, message_id: a run of
                       a child has ended; the message is the one that tells it; result and error
                       have [cut] where their text has more than 1,000 characters
request.created        the request, whole in the log of its session; in the logs of all above it
                       without detail and options, its texts cut to 1,000 characters, [cut]: what
                       differs
request.updated        the same: people are called on now
request.expiring       the same: it is still open, and expires soon (``expires_at``)
request.extended       the same: it expires later than it would have
request.resolved       the same: it is closed, in whatever way
=====================  ===========================================================================

What agents did has one shape for all agents, and a field in brackets is there when the agent told it:

=====================  ===========================================================================
type                   data
=====================  ===========================================================================
agent.message          text, [item_id]
agent.message.delta    text, item_id: a piece of the message that ``agent.message`` later holds whole
agent.reasoning        text, [item_id]
tool.started           tool_id, kind, name, input {…}
tool.output            tool_id, text: a piece of what the tool printed; the whole is in ``tool.completed``
tool.completed         tool_id, kind, name, input {…}, status, output, [exit_code], [error], [result]
file.changed           tool_id, status, changes [{path, kind: add|update|delete, [diff]}]; diff: of an
                       update a unified diff, of a file added or deleted its text
plan.updated           steps [{text, status: pending|in_progress|completed}]
usage.updated          input_tokens, cached_input_tokens, output_tokens, cost_usd: of this run
run.error              message, [code], [item_id]: a problem that did not by itself end the run; with
                       [provider, fallback]: the second stands in for the first; with [silent_s]: a
                       warning
thread.started         provider, thread_id
thread.replaced        provider, thread_id, previous_thread_id
backend.event          kind, payload: what an agent said that has no better name
=====================  ===========================================================================

``kind`` of a tool is ``command`` (name ``shell``, input ``{command}``), ``mcp`` (name
``server.tool``), ``web_search``, ``agent`` (work with agents of its own) or ``function``;
``status`` is ``completed``, ``failed`` or ``declined``.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from agent_orchestrator.domain.lifecycle import RunStatus


class EventType(StrEnum):
    SESSION_CREATED = "session.created"
    SESSION_UPDATED = "session.updated"
    SESSION_CLOSED = "session.closed"
    MESSAGE_CREATED = "message.created"
    RUN_QUEUED = "run.queued"
    RUN_STARTED = "run.started"
    RUN_WAITING = "run.waiting"
    RUN_RESUMED = "run.resumed"
    RUN_RECOVERED = "run.recovered"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_ERROR = "run.error"
    RUN_CANCELED = "run.canceled"
    AGENT_MESSAGE = "agent.message"
    AGENT_MESSAGE_DELTA = "agent.message.delta"
    AGENT_REASONING = "agent.reasoning"
    TOOL_STARTED = "tool.started"
    TOOL_OUTPUT = "tool.output"
    TOOL_COMPLETED = "tool.completed"
    FILE_CHANGED = "file.changed"
    PLAN_UPDATED = "plan.updated"
    USAGE_UPDATED = "usage.updated"
    BACKEND_EVENT = "backend.event"
    CHILD_SPAWNED = "child.spawned"
    CHILD_FINISHED = "child.finished"
    REQUEST_CREATED = "request.created"
    REQUEST_UPDATED = "request.updated"
    REQUEST_EXPIRING = "request.expiring"
    REQUEST_EXTENDED = "request.extended"
    REQUEST_RESOLVED = "request.resolved"
    THREAD_STARTED = "thread.started"
    THREAD_REPLACED = "thread.replaced"


AGENT_EVENTS = frozenset(
    {
        EventType.RUN_ERROR,
        EventType.AGENT_MESSAGE,
        EventType.AGENT_MESSAGE_DELTA,
        EventType.AGENT_REASONING,
        EventType.TOOL_STARTED,
        EventType.TOOL_OUTPUT,
        EventType.TOOL_COMPLETED,
        EventType.FILE_CHANGED,
        EventType.PLAN_UPDATED,
        EventType.BACKEND_EVENT,
    }
)
"""What a runner may emit; the engine alone writes the others."""


OUTPUT_EVENTS: Final = AGENT_EVENTS - {EventType.RUN_ERROR}
"""What shows that an agent is at work; a warning that it says nothing is not among it."""


STATE_AFTER: Final[Mapping[str, RunStatus]] = {
    EventType.RUN_QUEUED: RunStatus.QUEUED,
    EventType.RUN_STARTED: RunStatus.RUNNING,
    EventType.RUN_WAITING: RunStatus.WAITING,
    EventType.RUN_RESUMED: RunStatus.RUNNING,
    EventType.RUN_COMPLETED: RunStatus.COMPLETED,
    EventType.RUN_FAILED: RunStatus.FAILED,
    EventType.RUN_CANCELED: RunStatus.CANCELED,
}
"""The state a run is in after an event; the others leave it as it was."""


class InvalidEvent(ValueError):
    """A runner emitted an event that is not an agent's to write, or that JSON cannot say."""
