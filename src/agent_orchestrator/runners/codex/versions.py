"""The versions of codex with a supported app-server and with permission profiles."""

from typing import Final

from attrs import evolve

from agent_orchestrator.ports.runner import Availability
from agent_orchestrator.runners.versions import numbers

_OLDEST: Final = (0, 169)
"""The oldest codex with a supported app-server."""

_NEWEST: Final = (0, 169)
"""The newest tested version."""


def with_version_note(availability: Availability) -> Availability:
    """Return the availability, with a note if codex's version is too old or was not tested."""
    version = numbers(availability.version, len(_OLDEST))
    if version is None:
        return availability
    if version < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        reason = (
            f"codex {availability.version} is too old: its app-server is supported from {oldest} on; "
            "update codex"
        )
        return Availability(available=False, reason=reason, version=availability.version)
    if version > _NEWEST and availability.reason is None:
        newest = ".".join(map(str, _NEWEST))
        reason = f"codex {availability.version} is newer than the tested versions of its app-server (up to {newest})"
        return evolve(availability, reason=reason)
    return availability


def has_app_server(version: str | None) -> bool:
    """Return whether a codex of this version has a supported app-server."""
    found = numbers(version, len(_OLDEST))
    return found is not None and found >= _OLDEST


def has_profiles(version: str | None) -> bool:
    """Return whether a codex of this version has permission profiles."""
    return has_app_server(version)
