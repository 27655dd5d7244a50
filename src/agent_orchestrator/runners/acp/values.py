"""Reads messages that may have any shape."""

from collections.abc import Mapping, Sequence
from typing import Any

from agent_orchestrator.runners.events import JsonObject


def objects(value: Any) -> Sequence[JsonObject]:
    """Return the objects in a list; none if it is not a list."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def value_at(value: Any, path: Sequence[str]) -> Any:
    """Return the value at a path of names; None if there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
