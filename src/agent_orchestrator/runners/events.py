"""The output of an agent as events."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import frozen

from agent_orchestrator.runners.lines import limit_depth
from agent_orchestrator.wire import strict_json

JsonObject = Mapping[str, Any]


class UnexpectedShape(Exception):
    """Known output of an agent has an unknown shape. Record it unchanged."""


@frozen
class AgentEvent:
    """An event to emit."""

    event_type: str
    data: JsonObject


def agent_event(event_type: str, /, **data: Any) -> AgentEvent:
    """Return an event. Values that are nested too deeply in its data become JSON text."""
    return AgentEvent(event_type, require_object(limit_depth(data)))


def text(value: Any) -> str:
    """Return a text unchanged, None as an empty text, and any other value as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return strict_json.text_of(value) if strict_json.is_long(value) else json.dumps(value)


def error_words(message: str) -> str:
    """Return the message of a model server's error, if this is its JSON; else the text itself."""
    with suppress(LookupError, ValueError, RecursionError):
        error = json.loads(message)["error"] if message.lstrip()[:1] == "{" else None
        return (text(error.get("message")) if isinstance(error, dict) else "") or message
    return message


def require_object(value: Any) -> JsonObject:
    """Return the value.

    :raises UnexpectedShape: if it is not an object.
    """
    if not isinstance(value, Mapping):
        raise UnexpectedShape
    return value


def require_list(value: Any) -> Sequence[Any]:
    """Return the value.

    :raises UnexpectedShape: if it is not a list.
    """
    if not isinstance(value, list):
        raise UnexpectedShape
    return value
