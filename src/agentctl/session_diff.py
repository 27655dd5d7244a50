"""``agentctl session diff``: what changed in a session's directory since the session began."""

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import anyio

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Session
from agent_orchestrator.operations.events import LIST_EVENTS
from agent_orchestrator.operations.sessions import GET_SESSION
from agentctl.connection import DaemonConnection
from agentctl.diffs import Change, changes_of, diff_blocks, is_done
from agentctl.document import Block, Text
from agentctl.failures import Failure
from agentctl.times import ago

_GIT_S: Final = 60.0
_LARGEST: Final = 1_000_000
"""Bytes of a new file that is shown; of a larger one only the name."""

_EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

_HARMLESS: Final = (
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.quotePath=false",
)
"""The directory's own configuration, which an agent may have written, must start no program."""


async def show_diff(connection: DaemonConnection, session_id: str, *, whole: bool) -> None:
    """Print what a session changed: from git where its directory is in a checkout, else from its events.

    :param whole: also show long changes in full.
    """
    session = (await connection.call(GET_SESSION, session_id=session_id)).session
    git = _Git(session) if connection.output.settings.is_local else None
    base = await git.base() if git is not None else None
    if git is not None and base is not None:
        source, changes = "git", [change async for change in git.changes(base)]
    else:
        source, changes = "events", [change async for change in _logged(connection, session)]
    answer = {
        "session_id": session.id,
        "cwd": session.cwd,
        "source": source,
        "base": base,
        "changes": [{"path": one.path, "kind": one.kind, "diff": one.diff} for one in changes],
    }
    since = f"since {base[:12]}" if base else "according to its events"
    head = Text(f"{session.cwd}, {since}, {ago(session.created_at, datetime.now(UTC))}", "dim")

    def view() -> list[Block]:
        return [head, *(diff_blocks(changes, folded=not whole) or ["no changes"])]

    connection.output.answer(answer, view)


async def _logged(connection: DaemonConnection, session: Session) -> Any:
    """Yield the changes in a session's log, in their order."""
    cursor = 0
    while True:
        page = await connection.call(LIST_EVENTS, session_id=session.id, cursor=cursor, limit=1000)
        for event in page.events:
            if event.event_type == EventType.FILE_CHANGED and is_done(event.data):
                for change in changes_of(event.data):
                    yield change
        cursor = page.next_cursor
        if not page.has_more:
            return


class _Git:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._began = session.created_at.timestamp()
        self._options: tuple[str, ...] = _HARMLESS

    async def _run(self, *arguments: str) -> bytes | None:
        """Return the output of git in the session's directory; None if it fails."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        argv = ["git", "-C", self._session.cwd, *self._options, *arguments]
        try:
            with anyio.fail_after(_GIT_S):
                done = await anyio.run_process(
                    argv, check=False, env=env, stderr=subprocess.DEVNULL
                )
        except FileNotFoundError:
            return None
        except TimeoutError:
            raise Failure("timeout", f"git did not answer within {_GIT_S:g} s") from None
        return done.stdout if done.returncode == 0 else None

    async def base(self) -> str | None:
        """Return the commit that was checked out when the session began; None without a checkout."""
        if await self._run("rev-parse", "--show-toplevel") is None:
            return None
        filters = (
            await self._run("config", "--name-only", "-z", "--get-regexp", r"^filter\.") or b""
        )
        for name in filters.decode(errors="surrogateescape").split("\0"):
            if name.endswith((".clean", ".process", ".required")):
                self._options = (
                    *self._options,
                    "-c",
                    f"{name}={'false' if name.endswith('d') else ''}",
                )
        at = self._session.created_at.isoformat()
        found = await self._run("rev-parse", "-q", "--verify", f"HEAD@{{{at}}}")
        found = found or await self._run("rev-parse", "-q", "--verify", "HEAD")
        return found.decode().strip() if found else _EMPTY_TREE

    async def changes(self, base: str) -> Any:
        """Yield the files that were written since the session began and differ from the base."""
        diff = await self._run(
            "diff",
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            "--no-renames",
            "--relative",
            base,
            "--",
            ".",
        )
        for change in _files((diff or b"").decode(errors="replace")):
            if change.kind == "delete" or self._is_new(change.path):
                yield change
        others = await self._run("ls-files", "--others", "--exclude-standard", "-z", "--", ".")
        for name in (others or b"").decode(errors="surrogateescape").split("\0"):
            if name and self._is_new(name):
                yield Change(name, "add", self._content(name))

    def _is_new(self, name: str) -> bool:
        try:
            return Path(self._session.cwd, name).lstat().st_mtime >= self._began
        except OSError:
            return True

    def _content(self, name: str) -> str | None:
        path = Path(self._session.cwd, name)
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
                return None
            return path.read_bytes().decode()
        except (OSError, ValueError):
            return None


def _files(diff: str) -> Iterator[Change]:
    """Yield the change of each file in git's output."""
    for part in ("\n" + diff).split("\ndiff --git ")[1:]:
        head, _, hunks = part.partition("\n@@ ")
        lines = head.split("\n")
        names = {
            line[:4]: line[4:].removesuffix("\t") for line in lines if line[:4] in ("--- ", "+++ ")
        }
        kind = next(
            (kind for word, kind in _KINDS.items() if any(line.startswith(word) for line in lines)),
            "update",
        )
        path = names.get("--- " if kind == "delete" else "+++ ", lines[0].rpartition(" b/")[2])
        path = path[2:] if path[:2] in ("a/", "b/") else path
        body = f"@@ {hunks}" if hunks else None
        if kind != "update" and body is not None:  # for whole files, only their content
            body = "".join(
                f"{line[1:]}\n" for line in body.split("\n")[1:] if line[:1] in ("+", "-")
            )
        yield Change(path, kind, body)


_KINDS: Final = {"new file": "add", "deleted file": "delete"}
