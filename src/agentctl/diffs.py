"""Changes of files in events and requests: counts, and lines to read. No I/O."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from agentctl.document import Block, Diff, DiffLine, Text
from agentctl.terminal import one_line
from agentctl.times import counted

_HUNK: Final = re.compile(r"@@ -(\d{1,18}+)(?:,(\d{1,18}+))? \+(\d{1,18}+)(?:,(\d{1,18}+))? @@(.*)")
_VERBS: Final = {"add": "added", "update": "changed", "delete": "deleted"}

FOLDED: Final = 40
"""Lines of a change that are shown at first."""


@frozen
class Lines:
    """Numbers of added and removed lines."""

    added: int = 0
    removed: int = 0

    def __add__(self, more: "Lines") -> "Lines":
        return Lines(self.added + more.added, self.removed + more.removed)

    def __str__(self) -> str:
        return f"+{self.added:,} -{self.removed:,}"


@frozen
class Change:
    """The change of one file.

    :param diff: a unified diff; for an added or deleted file perhaps its content. None if unknown.
    """

    path: str
    kind: str
    diff: str | None = None

    @property
    def verb(self) -> str:
        return _VERBS.get(self.kind, "changed")

    @property
    def counts(self) -> Lines | None:
        """Numbers of changed lines; None if they are unknown."""
        added = removed = 0
        has_lines = self.diff == "" and self.kind in ("add", "delete")
        for line in self.lines():
            has_lines = True
            added += line.sign == "+"
            removed += line.sign == "-"
        return Lines(added, removed) if has_lines else None

    def lines(self) -> Iterator[DiffLine]:
        """Yield the changed lines and those around them.

        The end of a hunk follows from the line counts in its header, because a removed line may begin
        with ``--``.
        """
        if self.diff is None:
            return
        texts = self.diff.split("\n")
        if self.kind in ("add", "delete"):
            sign = "+" if self.kind == "add" else "-"
            texts = texts[:-1] if texts[-1] == "" else texts
            yield from (DiffLine(sign, number, text) for number, text in enumerate(texts, 1))
            return
        old_left = new_left = old = new = 0
        for text in texts:
            if old_left <= 0 and new_left <= 0:
                if found := _HUNK.match(text):
                    old, new = int(found[1]), int(found[3])
                    old_left, new_left = (
                        1 if size is None else int(size) for size in found.group(2, 4)
                    )
                    yield DiffLine("@", None, found[5].strip())
                continue
            sign = text[:1] or " "
            if sign == "\\":  # "No newline at end of file"
                continue
            sign = sign if sign in "+-" else " "
            yield DiffLine(sign, old if sign == "-" else new, text[1:])
            old, old_left = old + (sign != "+"), old_left - (sign != "+")
            new, new_left = new + (sign != "-"), new_left - (sign != "-")

    def __str__(self) -> str:
        text = f"{self.verb} {self.path}"
        return text if (counts := self.counts) is None else f"{text}  {counts}"


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects in a list; an empty list for any other value. Event data is untrusted."""
    changes = value if isinstance(value, list | tuple) else []
    return [change for change in changes if isinstance(change, Mapping)]


def changes_of(data: Mapping[str, Any]) -> list[Change]:
    """Return the changes in the data of a ``file.changed`` event or in the detail of a request."""
    return [
        Change(
            one_line(str(change.get("path"))),
            str(change.get("kind")),
            diff if isinstance(diff := change.get("diff"), str) else None,
        )
        for change in objects(data.get("changes"))
    ]


def is_done(data: Mapping[str, Any]) -> bool:
    """Return whether the changes of a ``file.changed`` event were made."""
    return data.get("status") in (None, "completed")


def diff_blocks(changes: Iterable[Change], *, folded: bool = True) -> list[Block]:
    """Return changes to read: each file with its lines.

    :param folded: leave out lines of long changes.
    """
    blocks: list[Block] = []
    for change in changes:
        blocks.append(Text(str(change), "bold"))
        lines = [*change.lines()]
        lines = lines[1:] if lines[:1] and lines[0].sign == "@" and not lines[0].text else lines
        hidden = max(len(lines) - FOLDED, 0) if folded else 0
        if lines:
            blocks.append(Diff(lines[: len(lines) - hidden], hidden))
    return blocks


class Diffstat:
    """The net change of a run: each file once."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, Lines | None]] = {}

    def note(self, changes: Iterable[Change]) -> None:
        """Add changes that were made."""
        for change in changes:
            kind, counts = change.kind, change.counts
            if change.path in self._files:
                kind_before, before = self._files[change.path]
                kind = _NET_CHANGES.get((kind_before, kind), kind)
                counts = None if before is None or counts is None else before + counts
            self._files[change.path] = (kind, counts)

    def __str__(self) -> str:
        """Return a summary; empty if nothing was changed.

        Line counts are included only if known for every file, because a partial sum would mislead.
        """
        files = [one for one in self._files.values() if one[0] != _GONE]
        if not files:
            return ""
        verbs = [_VERBS.get(kind, "changed") for kind, _ in files]
        kinds = [f"{verbs.count(verb)} {verb}" for verb in _VERBS.values() if verb in verbs]
        text = counted(len(files), "file")
        text += f" {verbs[0]}" if len(kinds) == 1 else f": {', '.join(kinds)}"
        counts = [lines for _, lines in files if lines is not None]
        return f"{text}, {sum(counts, Lines())}" if len(counts) == len(files) else text


_GONE: Final = "gone"
"""The kind of a file that the run added and deleted again."""

_NET_CHANGES: Final = {
    ("add", "update"): "add",
    ("add", "delete"): _GONE,
    (_GONE, "add"): "add",
    (_GONE, "update"): "add",
    ("delete", "add"): "update",
}
"""The net kind of two changes of a file. By default, it is the second one."""
