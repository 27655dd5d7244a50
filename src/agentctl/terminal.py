"""Terminal output: styles, widths, wrapping, and removal of control characters.

Text from agents and tools is untrusted. Its escape sequences could overwrite earlier output, set the
window title or fill the clipboard. :func:`clean` removes them.
"""

import functools
import os
import re
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TextIO

from attrs import frozen

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
_CARETS: Final = {code: "^" + chr(code ^ 0x40) for code in (*range(0x20), 0x7F)}


class _VisibleControls(dict[int, str]):
    def __missing__(self, _: int) -> str:
        return "\N{REPLACEMENT CHARACTER}"


_VISIBLE_CONTROLS: Final = _VisibleControls(_CARETS)


def _visible(match: "re.Match[str]") -> str:
    return match.group().translate(_VISIBLE_CONTROLS)


_LONG: Final = 2**16
"""Characters from which on replacing saves memory."""

_PIECES: Final = 1000


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
    if not position:
        return text
    return "".join([*whole, *pieces, text[position:]])


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


_BLANKS: Final = re.compile(r"\s+")


def width(text: str) -> int:
    """Return the width of a cleaned text in columns. East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    return sum(_width(character) * times for character, times in Counter(text).items())


@functools.lru_cache(maxsize=4096)
def _width(character: str) -> int:
    if unicodedata.combining(character) or character in "\u200b\u200d\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def truncated(text: str, columns: int, *, ellipsis: str = "…") -> str:
    """Return the text, cut to the given width with an ellipsis if it is longer."""
    room = columns - width(ellipsis)
    used = end = 0
    for position, character in enumerate(text, 1):
        used += _width(character)
        if used <= room:
            end = position
        elif used > columns:
            return text[:end] + ellipsis if room > 0 else ellipsis[:columns]
    return text


def wrapped(text: str, columns: int | None) -> list[str]:
    """Return the lines of a cleaned text, wrapped between words; None does not wrap."""
    return list(lines_of(text, columns))


def lines_of(text: str, columns: int | None) -> Iterator[str]:
    """Yield the lines of :func:`wrapped` one at a time, to save memory."""
    for raw_line in _split(text):
        line = raw_line.rstrip().expandtabs(4)
        if columns is None or width(line) <= columns:
            yield line
        else:
            yield from _broken(line, max(columns, 8))


def _split(text: str) -> Iterator[str]:
    position = 0
    while (end := text.find("\n", position)) >= 0:
        yield text[position:end]
        position = end + 1
    yield text[position:] if position else text


_WORD: Final = re.compile(r"\s*+\S++")


def _broken(line: str, columns: int) -> list[str]:
    """Wrap a line that has no trailing whitespace."""
    indent = line[: len(line) - len(line.lstrip())]
    indent = indent if len(indent) < columns // 2 else ""
    lines, current, used = [], indent, len(indent)
    for match in _WORD.finditer(line, len(indent)):
        word = match.group()
        size = width(word)
        if used + size > columns:
            if current.strip():
                lines.append(current.rstrip())
            current, used, word = indent, len(indent), word.lstrip()
            size = width(word)
        if used + size > columns:
            *full, word = _pieces(word, columns - used)
            lines += [current + piece for piece in full]
            size = width(word)
        current += word
        used += size
    return [*lines, current]


def _pieces(word: str, columns: int) -> list[str]:
    """Split a word into pieces of at most the given width."""
    if word.isascii():
        return [word[start : start + columns] for start in range(0, len(word), columns)]
    pieces, start, used = [], 0, 0
    for position, character in enumerate(word):
        used += _width(character)
        if used > columns:
            pieces.append(word[start:position])
            start, used = position, _width(character)
    return [*pieces, word[start:]]


_CODES: Final = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33",
    "blue": "34", "magenta": "35", "cyan": "36",
}  # fmt: skip


@frozen
class Style:
    """The capabilities of an output stream.

    :param colour: True if it supports colours.
    :param unicode: True if it supports more than ASCII.
    :param columns: its width; None for files and pipes, whose lines are neither wrapped nor cut.
    """

    colour: bool = False
    unicode: bool = True
    columns: int | None = None

    def paint(self, text: str, *styles: str) -> str:
        """Return the text in these styles, or unchanged without colours."""
        if not self.colour or not styles or not text:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def symbol(self, rich: str, plain: str) -> str:
        """Return ``rich`` if the stream supports Unicode, else ``plain``."""
        return rich if self.unicode else plain


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def style_of(stream: TextIO) -> Style:
    """Return the style of a stream (NO_COLOR: https://no-color.org)."""
    terminal = is_terminal(stream)
    colour = terminal and os.environ.get("TERM") != "dumb"
    if os.environ.get("FORCE_COLOR"):
        colour = True
    if os.environ.get("NO_COLOR"):
        colour = False
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    columns = max(40, shutil.get_terminal_size((100, 24)).columns) if terminal else None
    return Style(colour, encoding == "utf8", columns)


def prepare_streams() -> None:
    """Escape characters that the streams' encodings lack, and replace closed streams."""
    _replace_closed()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _replace_closed() -> None:
    """Replace standard streams that the caller closed (``>&-``). In Python, these are None.

    Otherwise the next opened file would get the number of a standard stream. Writing to the new
    standard output fails, as with the closed one. Standard error is discarded.
    """
    if sys.stdin is None:
        _open_null(0, os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = os.fdopen(_open_null(1, os.O_RDONLY), "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(_open_null(2, os.O_WRONLY), "w", encoding="utf-8", closefd=False)


def _open_null(number: int, flags: int) -> int:
    null = os.open(os.devnull, flags)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    return number


def put(stream: TextIO, text: str) -> None:
    """Write and flush a text.

    Errors on standard error, such as a full disk, are ignored, because the answer does not depend on it.

    :raises Failure: if standard output cannot be written.
    :raises BrokenPipeError: if the reader has closed the stream.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(stream)
        if stream is not sys.stderr:
            raise file_failure(error) from error


class Buffer:
    """Writes to a stream in parts of moderate size. A short text is written at once by :meth:`flush`.

    :param write: receives the parts.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._pieces: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Buffer or write a text."""
        if len(text) > _PART:
            self.flush()
            for position in range(0, len(text), _PART):
                self._write(text[position : position + _PART])
            return
        self._pieces.append(text)
        self._size += len(text)
        if self._size > _PART:
            self.flush()

    def add_lines(self, lines: Iterable[str]) -> None:
        """Add lines, each without its line ending."""
        for line in lines:
            self.add(line)
            self.add("\n")

    def flush(self) -> None:
        """Write the buffered text."""
        if self._pieces:
            self._write("".join(self._pieces))
        self._pieces.clear()
        self._size = 0


_PART: Final = 2**16
"""Maximum characters per write."""


def silence(stream: TextIO) -> None:
    """Discard all further output, buffered text included. It would fail again at exit."""
    _open_null(stream.fileno(), os.O_WRONLY)
