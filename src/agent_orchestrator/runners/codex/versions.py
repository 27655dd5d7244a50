"""The versions of codex with a supported app-server and with permission profiles."""

from typing import Final

from agent_orchestrator.runners.versions import SupportedVersions

VERSIONS: Final = SupportedVersions("codex", (0, 169), (0, 169), "update codex")
"""Those with a supported app-server, up to the newest that was tested."""


def has_profiles(version: str | None) -> bool:
    """Return whether a codex of this version has permission profiles."""
    return VERSIONS.has(version)
