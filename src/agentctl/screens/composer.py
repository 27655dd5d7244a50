"""The text field for messages, with its history."""

import json
import os
import shlex
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import unquote, urlsplit

import anyio
from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import TextArea

from agent_orchestrator.user_state import (
    make_private_directory,
    read_private,
    user_state,
    write_private,
)
from agentctl.failures import Failure
from agentctl.fields import read_images

_ENTRIES: Final = 500
_BYTES: Final = 500_000
"""Bounds of the history in its file."""


class History:
    """Earlier messages, oldest first, in a private file of the user."""

    def __init__(self) -> None:
        state = user_state()
        self._path = None if state is None else state.root / "chat-history"
        self.entries = self._read()

    def _read(self) -> list[str]:
        data = None if self._path is None else read_private(self._path)
        found = []
        for raw in (data or b"").splitlines():
            try:
                value = json.loads(raw)
            except ValueError:
                continue
            if isinstance(value, str):
                found.append(value)
        return found

    def add(self, text: str) -> None:
        """Add an entry, here and in the file. Another chat may have added some since."""
        if text == next(reversed(self.entries), None):
            return
        self.entries.append(text)
        if self._path is None:
            return
        kept, size = [], 0
        for entry in reversed([*self._read(), text][-_ENTRIES:]):
            kept.append(json.dumps(entry).encode())
            if (size := size + len(kept[-1]) + 1) > _BYTES:
                kept.pop()
                break
        try:
            make_private_directory(self._path.parent)
            write_private(self._path, b"".join(one + b"\n" for one in reversed(kept)))
        except OSError:  # the history of this start remains
            return


_IMAGES: Final = (".png", ".jpg", ".jpeg", ".gif", ".webp")

Attached = tuple[str, dict[str, str]]
"""The name of an image file, and the file in the format of a message."""


def image_at(pasted: str) -> Attached | None:
    """Return the image whose path was pasted; None for any other text.

    Terminals paste a dropped file as a path, with quotes or backslashes, or as a URL.

    :raises Failure: if it is an image file that cannot be sent.
    """
    text = pasted.strip()
    if "\n" in text or len(text) > 4_096 or not text.startswith(("/", "~", ".", "'", '"', "file:")):
        return None
    # Any text can be pasted. Methods of Path raise if a name is too long, or begins with `~` and is no user's.
    try:
        if text.startswith("file://"):
            text = unquote(urlsplit(text).path)
        elif not os.path.exists(text):
            text = " ".join(shlex.split(text))
    except ValueError:
        return None
    path = Path(os.path.expanduser(text))  # noqa: PTH111
    if path.suffix.lower() not in _IMAGES or not os.path.isfile(path):
        return None
    return path.name, read_images([str(path)])[0]


class Composer(TextArea):
    """A text of several lines. Enter sends it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("ctrl+j,shift+enter,alt+enter", "new_line", "New line"),
    ]

    class Sent(Message):
        """The user sends a text."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Pasted(Message):
        """The user pasted an image, or one that cannot be sent."""

        def __init__(self, image: Attached | None, problem: str = "") -> None:
            super().__init__()
            self.image = image
            self.problem = problem

    def __init__(self, history: History) -> None:
        super().__init__(id="composer", highlight_cursor_line=False, compact=True)
        self._history = history
        self._at = len(history.entries)
        self._draft = ""

    def action_new_line(self) -> None:
        """Insert a line break."""
        self.insert("\n")

    def on_key(self, event: events.Key) -> None:
        """Send the text, or recall an earlier one."""
        is_handled = event.key == "enter"
        if event.key == "up" and self.cursor_at_first_line:
            is_handled = self._recall(-1)
        elif event.key == "down" and self.cursor_at_last_line:
            is_handled = self._recall(1)
        elif is_handled and self.text.endswith("\\"):  # for terminals without another key for it
            self.text = self.text[:-1] + "\n"
            self.move_cursor(self.document.end)
        elif is_handled and self.text.strip():
            text, self.text = self.text, ""
            self._history.add(text)
            self._at = len(self._history.entries)
            self.post_message(self.Sent(text))
        if is_handled:
            event.stop()
            event.prevent_default()

    def _recall(self, step: int) -> bool:
        entries = self._history.entries
        at = self._at + step
        if not 0 <= at <= len(entries):
            return False
        if self._at >= len(entries):
            self._draft = self.text
        self._at = at
        self.text = entries[at] if at < len(entries) else self._draft
        self.move_cursor(self.document.end)
        return True

    async def on_paste(self, event: events.Paste) -> None:
        """Attach an image whose path is pasted. Any other text is inserted."""
        event.stop()
        try:
            found = await anyio.to_thread.run_sync(image_at, event.text)
        except Failure as failure:
            self.post_message(self.Pasted(None, failure.message.removeprefix("--image ")))
            return
        if found is not None:
            self.post_message(self.Pasted(found))
            event.prevent_default()
