"""Where answers go: as text for people, as JSON, or one value of it."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from agentctl.failures import NOT_FOUND, Failure
from agentctl.pager import page
from agentctl.settings import CallSettings
from agentctl.terminal import Buffer, Style, clean, is_terminal, put, style_of

Rendering = Callable[[Style], Iterable[str]]
"""Writes an answer as lines for a person."""

_COMMAND: Final = re.compile(r"(?<![\w./-])agentctl(?= [a-z])")
_LINE_BREAKING: Final = re.compile("[\x7f-\x9f\u2028\u2029]+")
_ESCAPES: Final = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


def compact(plain: Any) -> str:
    """Return JSON on one line whatever it is read with.

    C1 control characters and Unicode's line separators are escaped: terminals obey the first,
    many line readers break at the second.
    """
    return _escaped(json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _escaped(text: str) -> str:
    return _LINE_BREAKING.sub(lambda match: match.group().translate(_ESCAPES), text)


_MISSING: Final = object()


def value_at(plain: Any, path: str) -> Any:
    """Return the value at a path: names of objects and places in lists, apart by dots.

    :raises LookupError: if there is none.
    """
    found = plain
    for part in path.split("."):
        if isinstance(found, Mapping):
            found = found.get(part, _MISSING)
        elif isinstance(found, Sequence) and not isinstance(found, str) and part.isdecimal():
            found = found[int(part)] if int(part) < len(found) else _MISSING
        else:
            found = _MISSING
        if found is _MISSING:
            raise LookupError(path)
    return found


class Output:
    """The two streams of a call and the shape its answers take."""

    def __init__(self, settings: CallSettings) -> None:
        self.settings = settings
        self.style = style_of(sys.stdout)
        self.error_style = style_of(sys.stderr)
        self.interactive = is_terminal(sys.stderr) and not settings.structured
        """Whether a person watches: progress and hints make sense."""
        self.before_note: Callable[[], None] | None = None
        """Called before a note is written, to wipe a line that is redrawn."""
        self.announcer: Callable[[str], None] | None = None
        """Told of what would be written to standard error, where a screen is in the way."""
        self._streamed = 0
        self._shown = 0

    @property
    def structured(self) -> bool:
        return self.settings.structured

    @property
    def on_terminal(self) -> bool:
        """Whether the answer itself goes to a terminal."""
        return is_terminal(sys.stdout)

    def answer(self, answer: Any, rendering: Rendering) -> None:
        """Print the answer of a call.

        :param answer: an object of the wire, or plain JSON.
        :raises Failure: if it has no value at the path that was asked for.
        """
        if not self.structured:
            self.lines(page(rendering(self.style), self.style))
            return
        plain = to_plain(answer)
        if self.settings.field is None:
            self._json(plain)
            return
        try:
            value = value_at(plain, self.settings.field)
        except LookupError:
            raise self._no_field() from None
        self._value(value)

    def stream_item(self, answer: Any) -> None:
        """Print one document of a stream; one that lacks the field asked for is passed over."""
        plain = to_plain(answer)
        self._streamed += 1
        if self.settings.field is None:
            self._json(plain)
            return
        try:
            value = value_at(plain, self.settings.field)
        except LookupError:
            return
        self._shown += 1
        self._value(value)

    def end_of_stream(self) -> None:
        """End a stream of documents.

        :raises Failure: if not one of them had the field that was asked for.
        """
        if self.settings.field is not None and self._streamed and not self._shown:
            raise self._no_field()

    def note_next_page(self, cursor: str | int | None) -> None:
        """Tell the person that a listing goes on."""
        if cursor is not None:
            self.note(self.error_style.paint(f"there are more: --cursor {cursor}", "dim"))

    def _value(self, value: Any) -> None:
        if isinstance(value, str):
            self.lines([clean(value) if self.on_terminal else value])
        else:
            self._json(value)

    def _json(self, plain: Any) -> None:
        """Write a value as :func:`compact` does, in parts."""
        from agent_orchestrator.wire import strict_json

        buffer = Buffer(partial(put, sys.stdout))
        strict_json.write_in_slices(plain, lambda piece: buffer.add(_escaped(piece)))
        buffer.add("\n")
        buffer.flush()

    def _no_field(self) -> Failure:
        return Failure(
            "not_found",
            f"the answer has no field {self.settings.field}",
            exit_code=NOT_FOUND,
            hint="see the whole of it with --format json",
        )

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines to standard output, at once. Many or long ones are written in parts."""
        buffer = Buffer(partial(put, sys.stdout))
        buffer.add_lines(lines)
        buffer.flush()

    def note(self, text: str) -> None:
        """Tell the person something beside the answer; a program is told nothing."""
        if not self.structured:
            self.announce(text)

    def announce(self, text: str) -> None:
        """Write a line to standard error, whoever reads the answer."""
        if self.announcer is not None:
            self.announcer(text)
            return
        if self.before_note is not None:
            self.before_note()
        put(sys.stderr, as_typed(text) + "\n")

    def hint(self, text: str) -> None:
        """Suggest what to type next, where a person watches."""
        if self.interactive:
            self.note(self.error_style.paint(text, "dim"))


def to_plain(answer: Any) -> Any:
    """Return an answer as JSON; of a dictionary, each value."""
    from agent_orchestrator.wire import codec

    if isinstance(answer, dict):
        return {name: codec.to_plain(value) for name, value in answer.items()}
    return codec.to_plain(answer)


def print_failure(failure: Failure, *, structured: bool) -> None:
    """Write an error to standard error: one line, or the error object."""
    text = (
        compact(failure.as_json())
        if structured
        else "agentctl: " + as_typed(_line(failure.as_line()))
    )
    put(sys.stderr, text + "\n")


def as_typed(text: str) -> str:
    """Return advice with its commands as this person types them.

    ``bin/agentctl`` of a checkout says in ``AGENTCTL_PROGRAM`` how it was called.
    """
    program = os.environ.get("AGENTCTL_PROGRAM", "")
    return _COMMAND.sub(lambda _: clean(program), text) if program else text


def _line(text: str) -> str:
    return " ".join(clean(text).split())
