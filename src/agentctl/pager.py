"""Long answers through the user's pager, where a person reads them."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from agentctl.terminal import Look, is_terminal, silence

_LESS: Final = "FRX"
"""What git tells less, too: end where it fits, show colours, leave the text on the screen."""


def page(lines: Sequence[str], look: Look) -> bool:
    """Show lines in the pager where a terminal is too short for them; tell whether it was done.

    The pager is ``AGENTCTL_PAGER``, ``PAGER`` or ``less``; an empty one, and ``cat``, is none.
    """
    if look.columns is None or not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        return False
    if len(lines) < shutil.get_terminal_size().lines or os.environ.get("TERM") == "dumb":
        return False
    command = os.environ.get("AGENTCTL_PAGER", os.environ.get("PAGER", "less"))
    try:
        argv = shlex.split(command)
    except ValueError:
        return False
    if not argv or argv == ["cat"] or shutil.which(argv[0]) is None:
        return False
    text = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
    # An interrupt is for the pager: less ends a search by it. Ignored it would be for the pager, too.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        subprocess.run(argv, input=text, check=False, env={"LESS": _LESS} | dict(os.environ))
    except BrokenPipeError:  # it was left before its end
        silence(sys.stdout)
    finally:
        signal.signal(signal.SIGINT, before)
    return True
