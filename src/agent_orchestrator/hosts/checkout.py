"""What was changed in a directory of a git checkout.

An agent may have written the checkout: its files, its index, its attributes and its configuration,
which can name programs to run. So the comparison reads none of them but the files and the objects. It
runs in a new, empty repository that only refers to the objects of the checkout. Only the commit
to compare with is asked of the checkout itself, by a command that runs no program and fetches nothing.
"""

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
from anyio.to_thread import run_sync
from attrs import frozen

from agent_orchestrator.host import DirectoryChanges
from agent_orchestrator.hosts import scratch
from agent_orchestrator.hosts.diff_text import files_of
from agent_orchestrator.operations.sessions import FileChange

MAX_FILES: Final = 1_000
MAX_BYTES: Final = 4 * 2**20
"""Maximum number of files, and of bytes of their diffs."""

MAX_FILE_BYTES: Final = 512 * 1024
"""Maximum bytes of one diff; a file with a longer one is named only."""

GIT_S: Final = 20.0
"""Seconds that all commands of a comparison may take."""

MAX_COMPARISONS: Final = 2
"""Maximum number of comparisons at the same time."""

_EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

_HARMLESS: Final = (
    "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=false",
    "-c", "core.bigFileThreshold=1m", "--no-pager",
)  # fmt: skip

_LIMITER: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("comparisons")


@frozen
class _Checkout:
    """A directory in the work tree of a repository.

    :param base: the commit that was checked out at the time to compare with.
    """

    directory: Path
    work_tree: Path
    objects: Path
    base: str


async def changes(
    directory: str, since: datetime, hidden: Collection[str]
) -> DirectoryChanges | None:
    """Return what was changed in a directory since a time; see ``Host.directory_changes``."""
    async with _limiter():
        try:
            with anyio.fail_after(GIT_S):
                found = await _checkout(directory, since)
                if found is None:
                    return None
                async with scratch.private_directory() as place:
                    return await _compared(found, since, hidden, place)
        except (OSError, TimeoutError):
            return None


def _limiter() -> anyio.CapacityLimiter:
    try:
        return _LIMITER.get()
    except LookupError:
        _LIMITER.set(limiter := anyio.CapacityLimiter(MAX_COMPARISONS))
        return limiter


async def _checkout(directory: str, since: datetime) -> _Checkout | None:
    """Return the checkout of a directory; None if it has none that can be compared."""
    real = await run_sync(_real, directory)
    env = _environment()

    async def ask(*arguments: str) -> str | None:
        said = await _git(arguments, cwd=real, env=env)
        return None if said is None else os.fsdecode(said.output).strip("\n")

    where = await ask(
        "rev-parse", "--path-format=absolute", "--show-toplevel", "--git-path", "objects",
        "--show-object-format",
    )  # fmt: skip
    lines = [] if where is None else where.split("\n")
    if len(lines) != 3 or lines[2] != "sha1":
        return None
    work_tree, objects = [await run_sync(_real, line) for line in lines[:2]]
    if work_tree not in (real, *real.parents) or "\n" in str(objects):
        return None  # the configuration names another directory
    if await ask("config", "--type=bool", "--get", "core.sparseCheckout") == "true":
        return None  # the files that are left out would look deleted
    base = (
        await ask("rev-parse", "-q", "--verify", f"HEAD@{{{since.isoformat()}}}")
        or await ask("rev-parse", "-q", "--verify", "HEAD")
        or _EMPTY_TREE
    )
    return _Checkout(real, work_tree, objects, base)


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))


async def _compared(
    found: _Checkout, since: datetime, hidden: Collection[str], place: Path
) -> DirectoryChanges | None:
    git_directory = place / "git"
    await run_sync(_make_repository, git_directory, found.objects)
    env = {
        **_environment(),
        "GIT_DIR": str(git_directory),
        "GIT_WORK_TREE": str(found.work_tree),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "HOME": str(place),
        "XDG_CONFIG_HOME": str(place),
    }
    tree = ["--empty"] if found.base == _EMPTY_TREE else [found.base]
    if await _git(["read-tree", *tree], cwd=found.directory, env=env) is None:
        return None
    diff = await _git(
        [
            "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--relative",
            "--ignore-submodules=all", "--", ".",
        ],
        cwd=found.directory,
        env=env,
    )  # fmt: skip
    others = await _git(
        ["ls-files", "--others", "--exclude-standard", "-z", "--", "."],
        cwd=found.directory,
        env=env,
    )
    if diff is None or others is None:
        return None
    return await run_sync(_selected, found, since, tuple(hidden), diff, others)


def _make_repository(git_directory: Path, objects: Path) -> None:
    (git_directory / "objects" / "info").mkdir(parents=True)
    (git_directory / "refs").mkdir()
    (git_directory / "HEAD").write_text("ref: refs/heads/none\n")
    (git_directory / "config").write_text("[core]\n\trepositoryFormatVersion = 0\n\tbare = false\n")
    (git_directory / "objects" / "info" / "alternates").write_bytes(os.fsencode(objects) + b"\n")


@frozen
class _Said:
    output: bytes
    is_cut: bool


def _selected(
    found: _Checkout,
    since: datetime,
    hidden: Collection[str],
    diff: _Said,
    others: _Said,
) -> DirectoryChanges:
    """Return the files that were written since a time, up to the limits."""
    kept: list[FileChange] = []
    size, is_cut = 0, diff.is_cut or others.is_cut
    for change in _candidates(found, since, hidden, diff, others):
        length = 0 if change.diff is None else len(change.diff.encode(errors="replace"))
        if len(kept) == MAX_FILES:
            is_cut = True
            break
        is_too_much = length > MAX_FILE_BYTES or size + length > MAX_BYTES
        kept.append(FileChange(change.path, change.kind, None) if is_too_much else change)
        is_cut |= is_too_much
        size += 0 if is_too_much else length
    return DirectoryChanges(
        None if found.base == _EMPTY_TREE else found.base, tuple(kept), is_truncated=is_cut
    )


def _candidates(
    found: _Checkout, since: datetime, hidden: Collection[str], diff: _Said, others: _Said
) -> Iterator[FileChange]:
    began = since.timestamp()

    def is_shown(name: str) -> bool:
        path = os.path.realpath(found.directory / name)
        return not any(path == one or path.startswith(f"{one}/") for one in hidden)

    for change in files_of(diff.output, is_cut=diff.is_cut):
        is_new = change.kind == "delete" or _is_new(found.directory, change.path, began)
        if is_new and is_shown(change.path):
            yield change
    for raw in others.output.split(b"\0")[:-1]:
        name = os.fsdecode(raw)
        # A name with a slash at its end is another repository.
        if not name.endswith("/") and _is_new(found.directory, name, began) and is_shown(name):
            content = _content(found.directory, name)
            yield FileChange(os.fsencode(name).decode(errors="replace"), "add", content)


def _is_new(directory: Path, name: str, began: float) -> bool:
    try:
        return os.lstat(directory / name).st_mtime >= began
    except (OSError, ValueError):
        return True


def _content(directory: Path, name: str) -> str | None:
    """Return the text of a file; None if it is none, or too long, or reached through a symbolic link."""
    *folders, last = Path(name).parts
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        place = os.open(directory, flags | os.O_DIRECTORY)
        try:
            for folder in folders:
                inner = os.open(folder, flags | os.O_DIRECTORY, dir_fd=place)
                os.close(place)
                place = inner
            # Opening a pipe would wait for its writer.
            file = os.open(last, flags | os.O_NONBLOCK, dir_fd=place)
        finally:
            os.close(place)
        with open(file, "rb") as stream:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            data = stream.read(MAX_FILE_BYTES + 1)
        return data.decode() if len(data) <= MAX_FILE_BYTES and b"\0" not in data else None
    except (OSError, ValueError):
        return None


def _environment() -> dict[str, str]:
    """Return the environment of git: no repository but the directory's, and no access to others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **kept,
        "GIT_ALLOW_PROTOCOL": "none",  # a repository that lacks objects must not fetch them
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


async def _git(arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> _Said | None:
    """Return what git writes, up to ``MAX_BYTES``; None if it fails or is not installed."""
    program = shutil.which("git", path=env.get("PATH"))
    if program is None:
        return None
    process = await anyio.open_process(
        [program, *_HARMLESS, *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=cwd,
        env=env,
        start_new_session=True,
    )
    output = bytearray()
    try:
        assert process.stdout is not None
        with suppress(anyio.EndOfStream):
            while len(output) <= MAX_BYTES:
                output += await process.stdout.receive()
        if len(output) > MAX_BYTES:
            return _Said(bytes(output[:MAX_BYTES]), is_cut=True)
        return _Said(bytes(output), is_cut=False) if await process.wait() == 0 else None
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await process.aclose()
