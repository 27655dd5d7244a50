"""Git's unified diffs as text. No I/O."""

import codecs
from collections.abc import Iterator
from typing import Final

from agent_orchestrator.operations.sessions import ChangeKind, FileChange

_START: Final = b"\ndiff --git "

_HEADS_END: Final = (b"\n@@ ", b"\nBinary files ", b"\nGIT binary patch\n")
"""What the lines after the head of a file begin with."""

_KINDS: Final[dict[bytes, ChangeKind]] = {b"new file": "add", b"deleted file": "delete"}


def files_of(diff: bytes, *, is_cut: bool = False) -> Iterator[FileChange]:
    """Yield the change of each file in a diff without renames.

    :param is_cut: whether the diff ends early. The last file then has no lines. It is left out if its head is cut.
    """
    parts = (b"\n" + diff).split(_START)[1:]
    if is_cut and parts and not any(word in parts[-1] for word in _HEADS_END):
        parts.pop()  # in its head, so its name and kind are not known
        is_cut = False
    for number, part in enumerate(parts, 1):
        head, _, hunks = part.partition(b"\n@@ ")
        first, *lines = head.split(b"\n")
        kind: ChangeKind = "update"
        for word, its_kind in _KINDS.items():
            if any(line.startswith(word) for line in lines):
                kind = its_kind
        lines_text = hunks.decode(errors="replace").removesuffix("\n")
        body = f"@@ {lines_text}\n" if hunks else None
        if number == len(parts) and is_cut:
            body = None
        if kind != "update" and body is not None:  # for a whole file, only its content
            body = "".join(
                f"{line[1:]}\n" for line in body.split("\n")[1:-1] if line[:1] in ("+", "-")
            )
        yield FileChange(_name(first).decode(errors="replace"), kind, body)


def _name(names: bytes) -> bytes:
    """Return the name in ``a/NAME b/NAME``: both halves have the same name, which may have spaces."""
    half = names[: (len(names) - 1) // 2]
    if half.startswith(b'"'):
        half = codecs.escape_decode(half[1:-1])[0]
    return half.removeprefix(b"a/")
