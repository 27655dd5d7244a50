"""Counts of files and lines that a run changed, from its events. No I/O."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from agentctl.terminal import one_line
from agentctl.times import counted

_HUNK: Final = re.compile(r"@@ -\d++(?:,(\d{1,18}+))? \+\d++(?:,(\d{1,18}+))? @@")
_VERBS: Final = {"add": "added", "update": "changed", "delete": "deleted"}


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
    """The change of one file."""

    path: str
    kind: str
    lines: Lines | None
    """None if unknown: some agents report only paths and kinds."""

    @property
    def verb(self) -> str:
        return _VERBS.get(self.kind, "changed")

    def __str__(self) -> str:
        text = f"{self.verb} {self.path}"
        return text if self.lines is None else f"{text}  {self.lines}"


def objects(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects in a list; an empty list for any other value. Event data is untrusted."""
    changes = value if isinstance(value, list) else []
    return [change for change in changes if isinstance(change, Mapping)]


def changes_of(data: Mapping[str, Any]) -> list[Change]:
    """Return the changes in the data of a ``file.changed`` event."""
    return [
        Change(
            one_line(str(change.get("path"))), kind := str(change.get("kind")), _lines(kind, change)
        )
        for change in objects(data.get("changes"))
    ]


def is_done(data: Mapping[str, Any]) -> bool:
    """Return whether the changes of a ``file.changed`` event were made."""
    return data.get("status") in (None, "completed")


def _lines(kind: str, change: Mapping[str, Any]) -> Lines | None:
    """Count the changed lines. For an added or deleted file, ``diff`` may be its content."""
    diff = change.get("diff")
    if not isinstance(diff, str):
        return None
    if kind in ("add", "delete"):
        lines = diff.count("\n") + (not diff.endswith("\n") and diff != "")
        return Lines(added=lines) if kind == "add" else Lines(removed=lines)
    return _counted(iter(diff.split("\n")))


def _counted(diff: Iterator[str]) -> Lines | None:
    """Count the changed lines in a unified diff. Return None if it has no hunk.

    The end of a hunk follows from the line counts in its header, because a removed line may begin
    with ``--``.
    """
    added = removed = old = new = 0
    has_changes = False
    for line in diff:
        if old <= 0 and new <= 0:
            if header := _HUNK.match(line):
                has_changes = True
                old, new = (1 if size is None else int(size) for size in header.groups())
            continue
        sign = line[:1]
        if sign == "\\":  # "No newline at end of file"
            continue
        added += sign == "+"
        removed += sign == "-"
        old -= sign != "+"
        new -= sign != "-"
    return Lines(added, removed) if has_changes else None


class Diffstat:
    """The net change of a run: each file once."""

    def __init__(self) -> None:
        self._files: dict[str, Change] = {}

    def note(self, changes: Iterable[Change]) -> None:
        """Add changes that were made."""
        for change in changes:
            before = self._files.get(change.path)
            if before is None:
                self._files[change.path] = change
                continue
            kind = _NET_CHANGES.get((before.kind, change.kind), change.kind)
            known = before.lines is not None and change.lines is not None
            lines = before.lines + change.lines if known else None  # type: ignore[operator]
            self._files[change.path] = Change(change.path, kind, lines)

    def __str__(self) -> str:
        """Return a summary; empty if nothing was changed.

        Line counts are included only if known for every file, because a partial sum would mislead.
        """
        files = [change for change in self._files.values() if change.kind != _DELETED]
        if not files:
            return ""
        verbs = [change.verb for change in files]
        kinds = [(verbs.count(verb), verb) for verb in _VERBS.values() if verb in verbs]
        text = counted(len(files), "file")
        if len(kinds) == 1:
            text += f" {verbs[0]}"
        else:
            text += ": " + ", ".join(f"{number} {verb}" for number, verb in kinds)
        lines = [change.lines for change in files if change.lines is not None]
        return f"{text}, {sum(lines, Lines())}" if len(lines) == len(files) else text


_DELETED: Final = "gone"
"""The kind of a file that the run added and deleted again."""

_NET_CHANGES: Final = {
    ("add", "update"): "add",
    ("add", "delete"): _DELETED,
    (_DELETED, "add"): "add",
    (_DELETED, "update"): "add",
    ("delete", "add"): "update",
}
"""The net kind of two changes of a file. By default, it is the second one."""
