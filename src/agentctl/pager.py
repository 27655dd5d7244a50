"""Long output through the user's pager."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, islice
from typing import Final

from agentctl.terminal import Buffer, Style, is_terminal, silence

_LESS: Final = "FRX"
"""The options git uses for less: quit if one screen is enough, keep colours, do not clear the screen."""


def page(lines: Iterable[str], style: Style) -> Iterable[str]:
    """Show lines in a pager if the terminal is too small. Return the lines that are left to print.

    The pager is ``AGENTCTL_PAGER``, ``PAGER`` or ``less``. Empty and ``cat`` disable it.
    """
    if style.columns is None or not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        return lines
    unread = iter(lines)
    height = shutil.get_terminal_size().lines
    first = list(islice(unread, height))
    lines = chain(first, unread)
    if len(first) < height or os.environ.get("TERM") == "dumb":
        return lines
    command = os.environ.get("AGENTCTL_PAGER", os.environ.get("PAGER", "less"))
    try:
        argv = shlex.split(command)
    except ValueError:
        return lines
    if not argv or argv == ["cat"] or shutil.which(argv[0]) is None:
        return lines
    # Interrupts are for the pager. A handler is used because an ignored signal is inherited.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            env={"LESS": _LESS} | dict(os.environ),
            encoding="utf-8",
            errors="backslashreplace",
        ) as pager:
            assert pager.stdin is not None
            with suppress(BrokenPipeError):  # the user has quit the pager
                buffer = Buffer(pager.stdin.write)
                buffer.add_lines(lines)
                buffer.flush()
                pager.stdin.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    finally:
        signal.signal(signal.SIGINT, before)
    return ()
