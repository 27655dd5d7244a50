"""Output of answers: text, JSON, or one value of the JSON."""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TextIO

from agentctl.failures import NOT_FOUND, Failure
from agentctl.settings import CallSettings
from agentctl.terminal import allow_rich, clean, dim, has_colour, is_terminal, put, put_pieces

if TYPE_CHECKING:
    from agentctl.console import Screen
    from agentctl.document import Block

_COMMAND: Final = re.compile(r"(?<![\w./-])agentctl(?= [a-z])")
_LINE_BREAKING: Final = re.compile("[\x7f-\x9f\u2028\u2029]+")
_ESCAPES: Final = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}


def compact(plain: Any) -> str:
    """Return JSON text on a single line, also for readers that split at Unicode line separators.

    These and C1 control characters, which terminals interpret, are escaped.
    """
    return _escaped(json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _escaped(text: str) -> str:
    return _LINE_BREAKING.sub(lambda match: match.group().translate(_ESCAPES), text)


_MISSING: Final = object()


def value_at(plain: Any, path: str) -> Any:
    """Return the value at a path of member names and list indexes, separated by dots.

    :raises LookupError: if there is none.
    """
    value = plain
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part, _MISSING)
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else _MISSING
        else:
            value = _MISSING
        if value is _MISSING:
            raise LookupError(path)
    return value


class Output:
    """The output streams and the output format of a command."""

    def __init__(self, settings: CallSettings) -> None:
        self.settings = settings
        self.structured = settings.structured
        self.on_terminal = is_terminal(sys.stdout)
        """True if standard output is a terminal."""
        self.interactive = is_terminal(sys.stderr) and not settings.structured
        """True if a person watches, so that progress and hints are useful."""
        self.announcer: Callable[[str], None] | None = None
        """Receives notes in place of standard error while a live display is active."""
        self._screen: Screen | None = None
        self._streamed = 0
        self._shown = 0

    @property
    def for_people(self) -> bool:
        """True if the answer is shown on a terminal with tables and colours, not as text or JSON for programs."""
        return not self.structured and self.screen is not None

    @property
    def screen(self) -> "Screen | None":
        """The terminal of standard output; None for a file or a pipe."""
        if self._screen is None and (self.on_terminal or os.environ.get("FORCE_COLOR")):
            self._screen = self.screen_of(sys.stdout)
        return self._screen

    def screen_of(self, stream: TextIO) -> "Screen":
        """Return a terminal to show blocks on."""
        allow_rich()
        from agentctl.console import Screen

        return Screen(stream, wide=self.settings.wide)

    def answer(self, answer: Any, view: Callable[[], Iterable["Block"]]) -> None:
        """Print the answer of a command.

        :param answer: an API object or a JSON value.
        :param view: returns the answer for people.
        :raises Failure: if ``--field`` is given and the answer has no such field.
        """
        if not self.structured:
            self.show(view(), paged=True)
            return
        if not self._print(answer):
            raise self._no_field()

    def show(self, blocks: Iterable["Block"], *, paged: bool = False) -> None:
        """Print blocks to standard output. Long output is written in parts."""
        if (screen := self.screen) is not None:
            screen.show(blocks, paged=paged)
            if screen.listed:
                from agentctl.ids import remember

                remember(self.settings.url, screen.listed)
            return
        from agentctl.document import plain_lines

        self.lines(plain_lines(blocks))

    def stream_item(self, answer: Any) -> None:
        """Print one item of a stream. Items without the field of ``--field`` are skipped."""
        self._streamed += 1
        self._shown += self._print(answer)

    def end_of_stream(self) -> None:
        """End a stream.

        :raises Failure: if no item had the field of ``--field``.
        """
        if self.settings.field is not None and self._streamed and not self._shown:
            raise self._no_field()

    def note_next_page(self, cursor: str | int | None) -> None:
        """Print a note with the cursor of the next page, if there is one."""
        if cursor is not None:
            self.note(dim(f"for the next page: --cursor {cursor}", sys.stderr))

    def _print(self, answer: Any) -> bool:
        """Print JSON, or the value of ``--field``. Return False if there is no such field."""
        value = to_plain(answer)
        if self.settings.field is not None:
            try:
                value = value_at(value, self.settings.field)
            except LookupError:
                return False
        if isinstance(value, str):
            self.lines([clean(value) if self.on_terminal else value])
        else:
            self._json(value)
        return True

    def _json(self, plain: Any) -> None:
        """Write a value like :func:`compact`, in parts."""
        from agent_orchestrator.wire import strict_json

        waiting: list[str] = []

        def write(piece: str) -> None:
            waiting.append(_escaped(piece))
            if len(waiting) > 100 or len(piece) > 2**15:
                put_pieces(partial(put, sys.stdout), waiting)
                waiting.clear()

        strict_json.write_in_slices(plain, write)
        put_pieces(partial(put, sys.stdout), [*waiting, "\n"])

    def _no_field(self) -> Failure:
        return Failure(
            "not_found",
            f"the answer has no field {self.settings.field}",
            exit_code=NOT_FOUND,
            hint="see the whole answer with --format json",
        )

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines to standard output and flush. Long output is written in parts."""

        def pieces() -> Iterator[str]:
            for line in lines:
                yield line
                yield "\n"

        put_pieces(partial(put, sys.stdout), pieces())

    def note(self, text: str) -> None:
        """Write a line to standard error for the user. Does nothing in JSON mode."""
        if not self.structured:
            self.announce(text)

    def announce(self, text: str) -> None:
        """Write a line to standard error, also in JSON mode."""
        if self.announcer is not None:
            self.announcer(as_typed(text))
        else:
            put(sys.stderr, as_typed(text) + "\n")

    def hint(self, text: str) -> None:
        """Write a suggestion to standard error if a person watches."""
        if self.interactive:
            self.note(text if self.announcer is not None else dim(text, sys.stderr))

    @property
    def colour(self) -> bool:
        """True if standard output has colours."""
        return has_colour(sys.stdout)


def to_plain(answer: Any) -> Any:
    """Return the JSON value of an answer, or of a dictionary of answers."""
    from agent_orchestrator.wire import codec

    if isinstance(answer, dict):
        return {name: codec.to_plain(value) for name, value in answer.items()}
    return codec.to_plain(answer)


def print_failure(failure: Failure, *, structured: bool) -> None:
    """Write an error to standard error: as one line, broken at words on a terminal, or as JSON."""
    line = " ".join(clean(failure.as_line()).split())
    text = compact(failure.as_json()) if structured else f"agentctl: {as_typed(line)}"
    if not structured and is_terminal(sys.stderr):
        text = broken_at_words(text, shutil.get_terminal_size().columns)
    put(sys.stderr, text + "\n")


_COMMANDS: Final = re.compile("`[^`]*`")


def broken_at_words(text: str, columns: int) -> str:
    """Wrap a line at words. Commands in backticks are not broken, so that they can be copied."""
    kept = _COMMANDS.sub(lambda match: match.group().replace(" ", "\0"), text)
    lines = textwrap.wrap(kept, columns, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def as_typed(text: str) -> str:
    """Return a message with ``agentctl`` replaced by the command the user typed.

    ``bin/agentctl`` of a checkout sets it in ``AGENTCTL_PROGRAM``.
    """
    program = os.environ.get("AGENTCTL_PROGRAM", "")
    return _COMMAND.sub(lambda _: clean(program), text) if program else text
