"""Access tokens and invitations as QR codes."""

import json
import shutil
import sys
from collections.abc import Iterator
from typing import Final

import segno

from agentctl.output import Output
from agentctl.terminal import draws, is_unicode

QUIET_ZONE: Final = 4
"""Width of the margin in modules (ISO/IEC 18004, 5.3.8)."""

SMALL_ZONE: Final = 2
"""Width of the margin on a terminal with few lines. Cameras still find the code."""

CARD_LINES: Final = 7
"""Lines on the screen besides the code: the card above it, a blank line, and the prompt."""

_BLACK_ON_WHITE: Final = "\x1b[38;5;16;48;5;231m{}\x1b[0m"


def access_text(url: str, secret: str) -> str:
    """Return the content of the code. It is not a URL, because URLs are saved in histories."""
    return json.dumps({"url": url, "token": secret}, separators=(",", ":"))


def device_url(url: str, invitation: str) -> str:
    """Return the address of an invitation for a device. Browsers do not send the part after ``#``.

    :param invitation: the code of the invitation.
    """
    return f"{url.rstrip('/')}/#device={invitation}"


def link_url(url: str, secret: str) -> str:
    """Return the address of a share link. Browsers do not send the part after ``#``."""
    return f"{url.rstrip('/')}/#link={secret}"


def code(
    text: str,
    *,
    colour: bool = False,
    unicode: bool = True,
    columns: int | None = None,
    height: int | None = None,
) -> list[str]:
    """Return a QR code as lines.

    Without colours, the light modules are drawn, because most terminals have a dark background.

    :param height: maximum lines. If it needs more, its margin is smaller.
    """
    qr_code = segno.make(text, error="L", micro=False)
    modules = len(qr_code.matrix)
    fits = height is None or not unicode or (modules + 2 * QUIET_ZONE + 1) // 2 <= height
    border = QUIET_ZONE if fits else SMALL_ZONE
    rows = [
        [bool(module) == colour for module in row] for row in qr_code.matrix_iter(border=border)
    ]
    needed = len(rows) if unicode else 2 * len(rows)
    if columns is not None and columns < needed:
        return [f"the QR code needs a terminal of {needed} columns, but this one has {columns}"]
    if not unicode:
        return ["".join("##" if inked else "  " for inked in row) for row in rows]
    lines = _halved(rows, blank=not colour)
    return [_BLACK_ON_WHITE.format(line) if colour else line for line in lines]


def draw(output: Output, text: str, *, always: bool = False) -> None:
    """Write a QR code below a card, on a terminal on which it can be drawn.

    :param always: also to a file, a pipe or another terminal.
    """
    if output.structured or not (always or draws(sys.stdout)):
        return
    size = shutil.get_terminal_size() if output.on_terminal else None
    lines = code(
        text,
        colour=output.colour,
        unicode=is_unicode(sys.stdout),
        columns=size and size.columns,
        height=size and size.lines - CARD_LINES,
    )
    output.lines(["", *lines])


def note_local(output: Output) -> None:
    """Print a note if the address in a code is one that only this machine can reach."""
    if output.settings.is_local:
        output.note(
            f"agentctl: only this machine can reach {output.settings.url}: for another device, use "
            "--url with an address that it can reach"
        )


def _halved(rows: list[list[bool]], *, blank: bool) -> Iterator[str]:
    """Yield two rows at a time as one line of half blocks."""
    for top in range(0, len(rows), 2):
        upper = rows[top]
        lower = rows[top + 1] if top + 1 < len(rows) else [blank] * len(upper)
        yield "".join(" ▄▀█"[2 * above + below] for above, below in zip(upper, lower, strict=True))
