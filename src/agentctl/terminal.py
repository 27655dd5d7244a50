"""Streams and the removal of control characters.

Text from agents and tools is untrusted. Its escape sequences could overwrite earlier output, set the
window title or fill the clipboard. :func:`clean` removes them.
"""

import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, TextIO

from agentctl.failures import file_failure

_SEQUENCES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movements (ECMA-48, 5.4)
    # OSC, DCS, …: the beginning of another one ends them. Otherwise a text full of beginnings would
    # take quadratic time.
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
)
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
)
_BLANKS: Final = re.compile(r"\s+")
_CARETS: Final = {code: "^" + chr(code ^ 0x40) for code in (*range(0x20), 0x7F)}


class _VisibleControls(dict[int, str]):
    def __missing__(self, _: int) -> str:
        return "\N{REPLACEMENT CHARACTER}"


_VISIBLE_CONTROLS: Final = _VisibleControls(_CARETS)
_LONG: Final = 2**16
"""Minimum length of a text that is replaced piece by piece, which takes less memory."""

_PIECES: Final = 1000


def _visible(match: "re.Match[str]") -> str:
    return match.group().translate(_VISIBLE_CONTROLS)


def _replaced(
    pattern: "re.Pattern[str]", replace: Callable[["re.Match[str]"], str], text: str
) -> str:
    """Return ``pattern.sub(replace, text)``, but without an object per match for long texts."""
    if len(text) < _LONG:
        return pattern.sub(replace, text)
    whole: list[str] = []
    pieces: list[str] = []
    position = 0
    for match in pattern.finditer(text):
        pieces += (text[position : match.start()], replace(match))
        position = match.end()
        if len(pieces) > _PIECES:
            whole.append("".join(pieces))
            pieces.clear()
    return "".join([*whole, *pieces, text[position:]]) if position else text


def clean(text: str) -> str:
    """Return the text without escape sequences and control characters.

    Escape sequences are removed, because tools colour their output. Other control characters and bidi
    controls are made visible. Newlines and tabs are kept. A lone carriage return, as in progress bars,
    becomes a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _replaced(_SEQUENCES, lambda _: "", text).replace("\r\n", "\n").replace("\r", "\n")
    return _replaced(_UNSAFE, _visible, text.replace("\u2028", "\n").replace("\u2029", "\n"))


def revealed(text: str) -> str:
    """Return the text with all control characters made visible and nothing removed.

    For requests: text in an escape sequence is read by the program that acts on the request, so the
    person who approves it must see it.
    """
    if text.isascii() and text.isprintable():
        return text
    return _replaced(_UNSAFE, _visible, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return the cleaned text on one line."""
    text = clean(text)
    if len(text) < _LONG:
        return " ".join(text.split())
    return _replaced(_BLANKS, lambda _: " ", text).strip()


def width(text: str) -> int:
    """Return the width of a cleaned text in columns. East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    return sum(_width(character) * times for character, times in Counter(text).items())


def _width(character: str) -> int:
    if unicodedata.combining(character) or character in "\u200b\u200d\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


_ASCII: Final = str.maketrans(
    {
        "✓": "+",
        "✗": "x",
        "■": "x",
        "●": "*",
        "·": "-",
        "…": "...",
        "→": "->",
        "›": ">",
        "»": ">",
        "↳": "&",
        "▸": "*",
        "✎": "%",
        "☰": "=",
        "├": "|",
        "└": "`",
        "│": "|",
        "─": "-",
        "⋮": ":",
        "’": "'",
        "•": "*",
        "▌": "|",
        "▏": "_",
        "━": "-",
    }
)


def spelled(text: str, stream: TextIO) -> str:
    """Return the text with our symbols in ASCII, if the stream supports no others."""
    return text if is_unicode(stream) else text.translate(_ASCII)


def allow_rich() -> None:
    """Let rich and textual be imported, which ``main`` keeps httpx from importing."""
    for name in ("pygments", "rich"):
        if sys.modules.get(name, ...) is None:
            del sys.modules[name]


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream supports more than ASCII."""
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    return encoding == "utf8"


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def takes_keys() -> bool:
    """Return whether a person can type to this process. A background job would be stopped by reading."""
    if not is_terminal(sys.stdin):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # a terminal that controls no jobs
        return True


def has_colour(stream: TextIO) -> bool:
    """Return whether to use colours (NO_COLOR: https://no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO) -> str:
    """Return the text in a dim colour, if the stream has colours."""
    return f"\x1b[2m{text}\x1b[0m" if has_colour(stream) else text


def prepare_streams() -> None:
    """Escape characters that the streams' encodings lack, and replace closed streams.

    If the caller closed a standard stream (``>&-``), the next opened file would get its number.
    Writing to the new standard output fails, as with the closed one. Standard error is discarded.
    """
    if sys.stdin is None:
        _open_null(0, os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = os.fdopen(_open_null(1, os.O_RDONLY), "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(_open_null(2, os.O_WRONLY), "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _open_null(number: int, flags: int) -> int:
    null = os.open(os.devnull, flags)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    return number


def silence(stream: TextIO) -> None:
    """Discard all further output, buffered text included. It would fail again at exit."""
    _open_null(stream.fileno(), os.O_WRONLY)


def put(stream: TextIO, text: str) -> None:
    """Write and flush a text.

    Errors on standard error, such as a full disk, are ignored, because the answer does not depend on it.

    :raises Failure: if standard output cannot be written.
    :raises BrokenPipeError: if the reader has closed the stream.
    """
    try:
        stream.write(spelled(text, stream))
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(stream)
        if stream is not sys.stderr:
            raise file_failure(error) from error


_PART: Final = 2**16
"""Maximum characters per write."""


def put_pieces(write: Callable[[str], object], pieces: Iterable[str]) -> None:
    """Write texts in parts of about :data:`_PART` characters."""
    waiting: list[str] = []
    size = 0
    for text in pieces:
        waiting.append(text)
        size += len(text)
        if size > _PART:
            if len(text) > _PART:
                waiting.pop()
                write("".join(waiting))
                for position in range(0, len(text), _PART):
                    write(text[position : position + _PART])
            else:
                write("".join(waiting))
            waiting, size = [], 0
    if waiting:
        write("".join(waiting))


def draws(stream: TextIO) -> bool:
    """Return whether a QR code can be drawn on this stream: whether it is a terminal that keeps its rows."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"
