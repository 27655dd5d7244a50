"""Access tokens and invitations as QR codes."""

import json
from collections.abc import Iterator
from typing import Final

import segno

QUIET_ZONE: Final = 4
"""Width of the margin in modules (ISO/IEC 18004, 5.3.8)."""

_BLACK_ON_WHITE: Final = "\x1b[38;5;16;48;5;231m{}\x1b[0m"


def access_text(url: str, secret: str) -> str:
    """Return the content of the code. It is not a URL, because URLs are saved in histories."""
    return json.dumps({"url": url, "token": secret}, separators=(",", ":"))


def device_url(url: str, invitation: str) -> str:
    """Return the address that lets a device in. Browsers do not send the part after ``#``.

    :param invitation: the code of the invitation.
    """
    return f"{url.rstrip('/')}/#device={invitation}"


def link_url(url: str, secret: str) -> str:
    """Return the address of a share link. Browsers do not send the part after ``#``."""
    return f"{url.rstrip('/')}/#link={secret}"


def code(
    text: str, *, colour: bool = False, unicode: bool = True, columns: int | None = None
) -> list[str]:
    """Return a QR code as lines.

    Without colours, the light modules are drawn, because most terminals have a dark background.
    """
    qr_code = segno.make(text, error="L", micro=False)
    rows = [
        [bool(module) == colour for module in row] for row in qr_code.matrix_iter(border=QUIET_ZONE)
    ]
    needed = len(rows) if unicode else 2 * len(rows)
    if columns is not None and columns < needed:
        return [f"the QR code needs a terminal of {needed} columns, but this one has {columns}"]
    if not unicode:
        return ["".join("##" if inked else "  " for inked in row) for row in rows]
    lines = _halved(rows, blank=not colour)
    return [_BLACK_ON_WHITE.format(line) if colour else line for line in lines]


def _halved(rows: list[list[bool]], *, blank: bool) -> Iterator[str]:
    """Yield two rows at a time as one line of half blocks."""
    for top in range(0, len(rows), 2):
        upper = rows[top]
        lower = rows[top + 1] if top + 1 < len(rows) else [blank] * len(upper)
        yield "".join(" ▄▀█"[2 * above + below] for above, below in zip(upper, lower, strict=True))
