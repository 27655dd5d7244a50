"""Lists what was changed in a directory of a git checkout.

An agent may have written anything in the checkout, also configuration and attributes that name programs to
run. So the comparison uses only its files and its objects: it runs in a new, empty repository that refers to
these objects. In the checkout itself, git only looks up paths, a setting and the commit to compare with. These
commands run no other program and fetch nothing.
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
"""Maximum bytes of one diff. A file with a longer one is listed without its diff."""

GIT_S: Final = 20.0
"""Maximum seconds for all commands of a comparison together."""

MAX_COMPARISONS: Final = 2
"""Maximum number of comparisons at the same time."""

_EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""Git's SHA-1 of a tree without files."""

_SAFE_OPTIONS: Final = (
    "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=false",
    "-c", "core.bigFileThreshold=1m", "--no-pager",
)  # fmt: skip

_LIMITER: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("comparisons")


@frozen
class _Checkout:
    """A directory in the work tree of a repository.

    :param objects: the repository's directory of objects.
    :param base: the commit to compare with; the empty tree if there is none.
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
                async with scratch.private_directory() as scratch_directory:
                    return await _compare(found, since, hidden, scratch_directory)
        except (OSError, TimeoutError):
            return None


def _limiter() -> anyio.CapacityLimiter:
    try:
        return _LIMITER.get()
    except LookupError:
        _LIMITER.set(limiter := anyio.CapacityLimiter(MAX_COMPARISONS))
        return limiter


async def _checkout(directory: str, since: datetime) -> _Checkout | None:
    """Return the checkout that contains a directory; None if there is none, or it cannot be compared."""
    resolved = await run_sync(_resolved, directory)
    env = _environment()

    async def output_of(*arguments: str) -> str | None:
        result = await _git(arguments, cwd=resolved, env=env)
        return None if result is None else os.fsdecode(result.output).strip("\n")

    paths = await output_of(
        "rev-parse", "--path-format=absolute", "--show-toplevel", "--git-path", "objects",
        "--show-object-format",
    )  # fmt: skip
    lines = [] if paths is None else paths.split("\n")
    if len(lines) != 3 or lines[2] != "sha1":
        return None
    work_tree, objects = [await run_sync(_resolved, line) for line in lines[:2]]
    if work_tree not in (resolved, *resolved.parents) or "\n" in str(objects):
        return None  # the configuration names another directory
    if await output_of("config", "--type=bool", "--get", "core.sparseCheckout") == "true":
        return None  # the files that are not checked out would look deleted
    base = (
        await output_of("rev-parse", "-q", "--verify", f"HEAD@{{{since.isoformat()}}}")
        or await output_of("rev-parse", "-q", "--verify", "HEAD")
        or _EMPTY_TREE
    )
    return _Checkout(resolved, work_tree, objects, base)


def _resolved(path: str) -> Path:
    return Path(os.path.realpath(path))


async def _compare(
    checkout: _Checkout, since: datetime, hidden: Collection[str], scratch_directory: Path
) -> DirectoryChanges | None:
    """Return the changes; None if git fails.

    :param hidden: files and directories that are not shown.
    :param scratch_directory: an empty directory for the new repository.
    """
    git_directory = scratch_directory / "git"
    await run_sync(_make_repository, git_directory, checkout.objects)
    env = {
        **_environment(),
        "GIT_DIR": str(git_directory),
        "GIT_WORK_TREE": str(checkout.work_tree),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "HOME": str(scratch_directory),
        "XDG_CONFIG_HOME": str(scratch_directory),
    }
    tree = ["--empty"] if checkout.base == _EMPTY_TREE else [checkout.base]
    if await _git(["read-tree", *tree], cwd=checkout.directory, env=env) is None:
        return None
    diff = await _git(
        [
            "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--relative",
            "--ignore-submodules=all", "--", ".",
        ],
        cwd=checkout.directory,
        env=env,
    )  # fmt: skip
    untracked = await _git(
        ["ls-files", "--others", "--exclude-standard", "-z", "--", "."],
        cwd=checkout.directory,
        env=env,
    )
    if diff is None or untracked is None:
        return None
    return await run_sync(_select, checkout, since, tuple(hidden), diff, untracked)


def _make_repository(git_directory: Path, objects: Path) -> None:
    (git_directory / "objects" / "info").mkdir(parents=True)
    (git_directory / "refs").mkdir()
    (git_directory / "HEAD").write_text("ref: refs/heads/none\n")
    (git_directory / "config").write_text("[core]\n\trepositoryFormatVersion = 0\n\tbare = false\n")
    (git_directory / "objects" / "info" / "alternates").write_bytes(os.fsencode(objects) + b"\n")


@frozen
class _Output:
    output: bytes
    is_cut: bool


def _select(
    checkout: _Checkout,
    since: datetime,
    hidden: Collection[str],
    diff: _Output,
    untracked: _Output,
) -> DirectoryChanges:
    """Return the changes since a time, up to the limits."""
    selected: list[FileChange] = []
    size, is_cut = 0, diff.is_cut or untracked.is_cut
    for change in _candidates(checkout, since, hidden, diff, untracked):
        length = 0 if change.diff is None else len(change.diff.encode(errors="replace"))
        if len(selected) == MAX_FILES:
            is_cut = True
            break
        is_too_much = length > MAX_FILE_BYTES or size + length > MAX_BYTES
        selected.append(FileChange(change.path, change.kind, None) if is_too_much else change)
        is_cut |= is_too_much
        size += 0 if is_too_much else length
    return DirectoryChanges(
        None if checkout.base == _EMPTY_TREE else checkout.base,
        tuple(selected),
        is_truncated=is_cut,
    )


def _candidates(
    checkout: _Checkout, since: datetime, hidden: Collection[str], diff: _Output, untracked: _Output
) -> Iterator[FileChange]:
    since_s = since.timestamp()

    def is_shown(name: str) -> bool:
        path = os.path.realpath(checkout.directory / name)
        return not any(path == one or path.startswith(f"{one}/") for one in hidden)

    for change in files_of(diff.output, is_cut=diff.is_cut):
        is_new = change.kind == "delete" or _is_new(checkout.directory, change.path, since_s)
        if is_new and is_shown(change.path):
            yield change
    for raw in untracked.output.split(b"\0")[:-1]:
        name = os.fsdecode(raw)
        # A name that ends with a slash is another repository.
        if not name.endswith("/") and _is_new(checkout.directory, name, since_s) and is_shown(name):
            content = _content(checkout.directory, name)
            yield FileChange(os.fsencode(name).decode(errors="replace"), "add", content)


def _is_new(directory: Path, name: str, since_s: float) -> bool:
    """Return whether a file was written since a time, or cannot be read."""
    try:
        return os.lstat(directory / name).st_mtime >= since_s
    except (OSError, ValueError):
        return True


def _content(directory: Path, name: str) -> str | None:
    """Return the text of a file; None if it is not text, is too long, or a part of its path is a symbolic link."""
    *folders, last = Path(name).parts
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        parent = os.open(directory, flags | os.O_DIRECTORY)
        try:
            for folder in folders:
                inner = os.open(folder, flags | os.O_DIRECTORY, dir_fd=parent)
                os.close(parent)
                parent = inner
            # Opening a pipe would wait for its writer.
            file = os.open(last, flags | os.O_NONBLOCK, dir_fd=parent)
        finally:
            os.close(parent)
        with open(file, "rb") as stream:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            data = stream.read(MAX_FILE_BYTES + 1)
        return data.decode() if len(data) <= MAX_FILE_BYTES and b"\0" not in data else None
    except (OSError, ValueError):
        return None


def _environment() -> dict[str, str]:
    """Return an environment for git that selects no other repository, and forbids access to remotes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **kept,
        "GIT_ALLOW_PROTOCOL": "none",  # a partial clone must not fetch missing objects
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


async def _git(arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> _Output | None:
    """Return the output of git, up to ``MAX_BYTES``; None if it fails or is not installed."""
    program = shutil.which("git", path=env.get("PATH"))
    if program is None:
        return None
    process = await anyio.open_process(
        [program, *_SAFE_OPTIONS, *arguments],
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
            return _Output(bytes(output[:MAX_BYTES]), is_cut=True)
        return _Output(bytes(output), is_cut=False) if await process.wait() == 0 else None
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await process.aclose()
