"""The full screens of ``agentctl chat`` and ``agentctl top``. Only these commands import textual."""

import os
import sys

from agentctl.failures import usage_failure
from agentctl.settings import CallSettings
from agentctl.terminal import allow_rich, is_terminal


def require_terminal(settings: CallSettings, name: str, others: str) -> None:
    """Check that there is a terminal for a full screen, and let the screens import their libraries.

    :param others: commands that need no terminal.
    :raises Failure: if there is none.
    """
    if settings.structured or not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise usage_failure(f"{name} needs a terminal; in scripts use {others}")
    if os.environ.get("TERM", "dumb") in ("", "dumb"):
        raise usage_failure(
            f"{name} needs a terminal that moves its cursor, not TERM=dumb; use {others}"
        )
    allow_rich()
