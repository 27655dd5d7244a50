"""The kinds of events a session's log holds.

An event's type is an open set: a reader keeps a type it does not know. The constants are the ones
this version writes or reserves.
"""

from enum import StrEnum


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


class InvalidEvent(ValueError):
    """A runner emitted an event that is not an agent's to write, or that JSON cannot say."""
