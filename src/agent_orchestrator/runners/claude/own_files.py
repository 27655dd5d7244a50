"""Rules that keep Claude Code from the files that agents must not access. Checked with 2.1.332.

They hold for its file tools, and for the files that it recognizes in a command. Such a command is not asked about, but denied.
"""

import re
from collections.abc import Sequence
from typing import Final

from agent_orchestrator.ports.runner import ProtectedPaths

_PATTERN: Final = re.compile(r"[*?\[\]!\\(){},]")
"""Characters that have a meaning in a rule."""

_READING_ALL: Final = (
    *(
        f"Bash({name}:*)"
        for name in ("grep", "egrep", "fgrep", "rg", "git grep", "diff", "git diff")
    ),
    *("Bash(*?*)", "Bash(*[*)", "Bash(*{*)", r"Bash(*\**)"),
)
"""Commands that are not asked about by default, and can read files that they do not name: all below a directory, or those
that match a pattern."""


def deny_rules(protected: ProtectedPaths) -> tuple[str, ...]:
    """Return the rules that deny the access to files."""
    return tuple(
        f"{tool}(/{pattern})"
        for tool, paths in (
            ("Read", protected.secret),
            ("Edit", (*protected.secret, *protected.read_only)),
        )
        for path in paths
        for pattern in (_quoted(path), f"{_quoted(path)}/**")
    )


def ask_rules(protected: ProtectedPaths, cwd: str) -> Sequence[str]:
    """Return the rules for commands that might read a secret file of the working directory without naming it."""
    below = f"{cwd.rstrip('/')}/"
    return _READING_ALL if any(path.startswith(below) for path in protected.secret) else ()


def _quoted(path: str) -> str:
    """Return a pattern for a path. A special character becomes any character, so that it protects a little more."""
    return _PATTERN.sub("?", path)
