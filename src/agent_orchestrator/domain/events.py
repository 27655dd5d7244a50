"""The types of events, and the data of each.

Later versions may add types: a reader keeps a type it does not know. A field in brackets is optional.
The engine writes these events of sessions and runs:

=====================  ===========================================================================
type                   data
=====================  ===========================================================================
session.created        title, provider, cwd; of a child: [parent_session_id, parent_run_id]
session.updated        the changed fields of: [title, model, metadata, status, approval_policy, sandbox, notices, cwd, host];
                       with cwd: previous_cwd, the directory before; with host: previous_host, and
                       left_threads: the conversations that stayed there, by provider
session.closed         the same
session.imported       status: closed, cwd, from_session_id, from_cwd, from_owner, made_by, made_at: all before this
                       was read from a file, and happened elsewhere
message.created        message_id, role, source {kind, session_id, run_id, principal}, text, [request_id]: the request whose decision it contains, [images]: media_type, size and digest of each, [is_steering]: true if it is for a running agent
message.updated        message_id, delivery, attempt: a running agent has taken a message that steers it (``delivered``),
                       or has given it back (``queued``)
run.queued             provider, attempt, [message_id], [reason]: why it is back in the queue
run.started            provider, attempt, worker_id
run.waiting            request_id, [parked]: true once its agent's process has ended; of a run of kind
                       attach: held_by, pid: the principal and its process
run.resumed            request_id
run.recovered          attempt, action, reason, worker_id, delivered, ended_processes: the daemon
                       ended while the run was active
run.completed          attempt, result {text}, [exit_code], [usage]
run.failed             attempt, error {code, message}, [exit_code], [usage]
run.canceled           attempt, [reason], [exit_code], [usage]
child.spawned          session_id, run_id, parent_run_id, title, task, [cut]: of the child; the task
                       has at most 1,000 characters
child.finished         session_id, run_id, parent_run_id, status, result, error, message_id: a run of
                       a child has ended; the message tells the parent; result and error have [cut]
                       if their text has more than 1,000 characters
request.created        the request. In the logs of ancestors it has no detail and options, and its
                       texts are cut to 1,000 characters; [cut]: the fields that differ
request.updated        the same: people are asked now
request.expiring       the same: it is open and expires soon (``expires_at``)
request.extended       the same: its time was extended
request.resolved       the same: it is no longer open
request.notified       request_id, notice_id, target, state: a target of the settings or a push
                       subscription was notified of the request: sent, shown, or failed with [error].
                       Only in the log of the request's session
=====================  ===========================================================================

Events of agents have the same shape for all agents. A field in brackets is present if the agent reports it:

=====================  ===========================================================================
type                   data
=====================  ===========================================================================
user.message           text, recorded_at: what a person said in the agent's own program
agent.message          text, [item_id]
agent.message.delta    text, item_id: a part of the message that ``agent.message`` later has whole
agent.reasoning        text, [item_id]
subagent.message       text, parent_tool_id, [item_id]: a message of a sub-agent, complete
tool.started           tool_id, kind, name, input {…}
tool.output            tool_id, text: a part of the tool's output; ``tool.completed`` has all of it
tool.completed         tool_id, kind, name, input {…}, status, output, [exit_code], [error], [result]
file.changed           tool_id, status, changes [{path, kind: add|update|delete, [diff]}]; diff: a
                       unified diff for an update, else the text of the file
plan.updated           steps [{text, status: pending|in_progress|completed}]
usage.updated          input_tokens, cached_input_tokens, output_tokens, cost_usd: of this run
run.error              message, [code], [item_id]: a problem that did not by itself end the run;
                       [provider, fallback]: the second replaces the first; [silent_s]: the seconds
                       without output that a warning is about
thread.started         provider, thread_id
thread.replaced        provider, thread_id, previous_thread_id
backend.event          kind, payload: any other output of an agent
=====================  ===========================================================================

Events from an agent's own record have ``recorded_at``: the time in the record, or null. They are of a
run of kind ``attach`` or ``adopt``.

An event of a sub-agent has ``parent_tool_id``: the call that it works for.

The ``kind`` of a tool is ``command`` (name ``shell``, input ``{command}``), ``mcp`` (name
``server.tool``), ``web_search``, ``agent`` (the agent's own subagents) or ``function``. Its
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
    SESSION_IMPORTED = "session.imported"
    MESSAGE_CREATED = "message.created"
    MESSAGE_UPDATED = "message.updated"
    RUN_QUEUED = "run.queued"
    RUN_STARTED = "run.started"
    RUN_WAITING = "run.waiting"
    RUN_RESUMED = "run.resumed"
    RUN_RECOVERED = "run.recovered"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_ERROR = "run.error"
    RUN_CANCELED = "run.canceled"
    USER_MESSAGE = "user.message"
    AGENT_MESSAGE = "agent.message"
    AGENT_MESSAGE_DELTA = "agent.message.delta"
    AGENT_REASONING = "agent.reasoning"
    SUBAGENT_MESSAGE = "subagent.message"
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
    REQUEST_NOTIFIED = "request.notified"
    THREAD_STARTED = "thread.started"
    THREAD_REPLACED = "thread.replaced"


AGENT_EVENTS = frozenset(
    {
        EventType.RUN_ERROR,
        EventType.USER_MESSAGE,
        EventType.AGENT_MESSAGE,
        EventType.AGENT_MESSAGE_DELTA,
        EventType.AGENT_REASONING,
        EventType.SUBAGENT_MESSAGE,
        EventType.TOOL_STARTED,
        EventType.TOOL_OUTPUT,
        EventType.TOOL_COMPLETED,
        EventType.FILE_CHANGED,
        EventType.PLAN_UPDATED,
        EventType.BACKEND_EVENT,
    }
)
"""The types that a runner may emit. Only the engine writes the others."""


OUTPUT_EVENTS: Final = AGENT_EVENTS - {EventType.RUN_ERROR}
"""The types that are output of an agent. ``run.error`` is not: it may warn that there is none."""


STATE_AFTER: Final[Mapping[str, RunStatus]] = {
    EventType.RUN_QUEUED: RunStatus.QUEUED,
    EventType.RUN_STARTED: RunStatus.RUNNING,
    EventType.RUN_WAITING: RunStatus.WAITING,
    EventType.RUN_RESUMED: RunStatus.RUNNING,
    EventType.RUN_COMPLETED: RunStatus.COMPLETED,
    EventType.RUN_FAILED: RunStatus.FAILED,
    EventType.RUN_CANCELED: RunStatus.CANCELED,
}
"""The state of a run after an event. Other types do not change it."""


class InvalidEvent(ValueError):
    """A runner emitted an event that agents may not emit, or that JSON cannot express."""
