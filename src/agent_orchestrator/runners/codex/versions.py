"""Which codexes have an app-server, and permission profiles, that are known here."""

from typing import Final

from attrs import evolve

from agent_orchestrator.ports.runner import Availability

_OLDEST: Final = (0, 169)
"""The oldest codex with a supported app-server."""

_NEWEST: Final = (0, 169)
"""The newest one that was tried."""


def with_version_note(found: Availability) -> Availability:
    """Return the availability of a codex, with its version held against those that were tried."""
    version = _numbers(found.version)
    if version is None:
        return found
    if version < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        reason = (
            f"codex {found.version} is too old: its app-server is supported from {oldest} on; "
            "update codex"
        )
        return Availability(available=False, reason=reason, version=found.version)
    if version > _NEWEST and found.reason is None:
        newest = ".".join(map(str, _NEWEST))
        reason = f"codex {found.version} is newer than the tested versions of its app-server (up to {newest})"
        return evolve(found, reason=reason)
    return found


def has_app_server(version: str | None) -> bool:
    """Return whether a codex of this version has a supported app-server."""
    found = _numbers(version)
    return found is not None and found >= _OLDEST


def has_profiles(version: str | None) -> bool:
    """Return whether a codex of this version has permission profiles."""
    return has_app_server(version)


def _numbers(version: str | None) -> tuple[int, int] | None:
    parts = (version or "").split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return int(parts[0]), int(parts[1])
