"""What was changed in a checkout is found without running what the checkout names."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from agent_orchestrator.host import DirectoryChanges
from agent_orchestrator.hosts import checkout, this_host
from agent_orchestrator.hosts.diff_text import files_of
from agent_orchestrator.operations.sessions import FileChange

pytestmark = pytest.mark.anyio

BEGAN = datetime.now(UTC) - timedelta(hours=1)
BEFORE = BEGAN - timedelta(hours=1)


def git(directory: Path, *arguments: str) -> str:
    env = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_COMMITTER_DATE": BEFORE.isoformat(),
        "GIT_AUTHOR_DATE": BEFORE.isoformat(),
    }
    named = ("-c", "user.name=ann", "-c", "user.email=ann@desk.example")
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *named, "-C", directory, *arguments],
        env=env,
        check=True,
        capture_output=True,
    )
    return done.stdout.decode().strip()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with a few files of one commit."""
    place = tmp_path / "checkout"
    place.mkdir()
    git(place, "init", "-q")
    for name in ("kept", "changed", "gone"):
        (place / name).write_text(f"{name}\none\n")
    git(place, "add", ".")
    git(place, "commit", "-qm", "first")
    return place


async def compared(place: Path, **more: tuple[str, ...]) -> DirectoryChanges:
    found = await this_host().directory_changes(str(place), BEGAN, **more)
    assert found is not None
    return found


def kinds(found: DirectoryChanges) -> dict[str, str]:
    return {one.path: one.kind for one in found.changes}


async def test_files_that_differ_from_the_commit_of_then_are_found(place: Path) -> None:
    first = git(place, "rev-parse", "HEAD")
    assert await compared(place) == DirectoryChanges(first, ())
    (place / "changed").write_text("changed\ntwo\n")
    (place / "gone").unlink()
    (place / "sub").mkdir()
    (place / "sub" / "new").write_text("a\nb\n")
    (place / "ignored").write_text("x")
    (place / ".gitignore").write_text("ignored\n")
    old = place / "old"
    old.write_text("from before")
    os.utime(old, (BEFORE.timestamp(), BEFORE.timestamp()))
    found = await compared(place)
    assert {one.path: (one.kind, one.diff) for one in found.changes} == {
        "changed": ("update", "@@ -1,2 +1,2 @@\n changed\n-one\n+two\n"),
        "gone": ("delete", "gone\none\n"),
        "sub/new": ("add", "a\nb\n"),
        ".gitignore": ("add", "ignored\n"),
    }
    assert (found.base, found.is_truncated) == (first, False)
    # In a directory below, only what is there, by its name from there.
    assert kinds(await compared(place / "sub")) == {"new": "add"}


async def test_a_linked_work_tree_and_an_empty_repository_are_compared(
    place: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    git(place, "worktree", "add", "-q", str(linked))
    for name in ("kept", "changed", "gone"):
        os.utime(linked / name, (BEFORE.timestamp(), BEFORE.timestamp()))
    (linked / "new").write_text("x")
    assert kinds(await compared(linked)) == {"new": "add"}
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    (empty / "new").write_text("x")
    found = await compared(empty)
    assert (found.base, kinds(found)) == (None, {"new": "add"})


async def test_a_directory_that_is_no_checkout_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = this_host()
    assert await host.directory_changes(str(tmp_path), BEGAN) is None
    assert await host.directory_changes(str(tmp_path / "missing"), BEGAN) is None
    git(tmp_path, "init", "-q", "--bare", "bare")
    assert await host.directory_changes(str(tmp_path / "bare"), BEGAN) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await host.directory_changes(str(tmp_path), BEGAN) is None


async def test_nothing_that_the_checkout_names_is_run(place: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\necho $0 $* >> {trap}\ncat\n")
    script.chmod(0o755)
    inner = place / "module"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "file").write_text("x")
    git(inner, "add", ".")
    git(inner, "commit", "-qm", "inner")
    git(place, "-c", "advice.addEmbeddedRepo=false", "add", "module")
    git(place, "commit", "-qm", "with a module")
    (inner / "file").write_text("dirty")
    for repository in (place, inner):
        for name in (
            "core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.askPass",
            "core.gitProxy", "core.alternateRefsCommand", "diff.external", "diff.x.command",
            "diff.x.textconv", "filter.x.clean", "filter.x.smudge", "filter.x.process",
            "credential.helper", "gpg.program", "interactive.diffFilter", "pager.diff",
            "uploadpack.packObjectsHook", "merge.x.driver", "sequence.editor",
        ):  # fmt: skip
            git(repository, "config", name, str(script))
        git(repository, "config", "filter.x.required", "true")
        git(repository, "config", "core.hooksPath", str(tmp_path / "hooks"))
        git(repository, "config", "submodule.recurse", "true")
        git(repository, "config", "diff.submodule", "diff")
        git(repository, "config", "diff.ignoreSubmodules", "none")
        # Objects that are missing would be fetched by a program of the configuration.
        git(repository, "config", "remote.origin.url", f"ext::{script} %S")
        git(repository, "config", "remote.origin.promisor", "true")
        git(repository, "config", "extensions.partialClone", "origin")
        git(repository, "config", "protocol.ext.allow", "always")
        (repository / ".git" / "info").mkdir(exist_ok=True)
        (repository / ".git" / "info" / "attributes").write_text("* filter=x diff=x merge=x\n")
    (tmp_path / "hooks").mkdir()
    for hook in (
        "post-index-change",
        "fsmonitor-watchman",
        "reference-transaction",
        "query-watchman",
    ):
        (tmp_path / "hooks" / hook).symlink_to(script)
        (place / ".git" / "hooks").mkdir(exist_ok=True)
        (place / ".git" / "hooks" / hook).symlink_to(script)
    (place / ".gitattributes").write_text("* filter=x diff=x\n")
    (place / "changed").write_text("changed\ntwo\n")
    (place / "new").write_text("new\n")
    os.utime(place / "kept", None)
    assert kinds(await compared(place)) == {
        "changed": "update", "new": "add", ".gitattributes": "add"
    }  # fmt: skip
    missing = git(place, "rev-parse", "HEAD:kept")
    (place / ".git" / "objects" / missing[:2] / missing[2:]).unlink()
    (place / "kept").write_text("kept\nchanged\n")
    assert await this_host().directory_changes(str(place), BEGAN) is None
    assert not trap.exists(), trap.read_text()


async def test_files_elsewhere_are_not_read(place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret-of-somebody")
    (outside / ".git").symlink_to(place / ".git")
    (place / "link").symlink_to(outside / "secret")
    (place / "folder").symlink_to(outside)
    (place / "sub").mkdir()
    (place / "sub" / "up").symlink_to("../../outside")
    (place / "changed").unlink()
    (place / "changed").symlink_to(outside / "secret")
    os.mkfifo(place / "pipe")
    (place / "protected").mkdir()
    (place / "protected" / "key").write_text("secret-of-somebody")
    (place / "token").write_text("secret-of-somebody")
    git(place, "add", "token")
    git(place, "commit", "-qm", "a token")
    (place / "token").write_text("secret-of-somebody else")
    hidden = (str(place / "protected"), str(place / "token"))
    found = await compared(place, hidden=hidden)
    assert "secret-of-somebody" not in str(found)
    assert {"link", "folder"} <= kinds(found).keys()
    assert not {"protected/key", "token"} & kinds(found).keys()
    git(place, "config", "core.worktree", str(outside))
    assert await this_host().directory_changes(str(place), BEGAN) is None


async def test_any_name_and_content_of_a_file_is_harmless(place: Path) -> None:
    names = (
        "a b/c", "x b/x", 'quo"te', "new\nline", "tab\tname", "ümlaut 漢", "-rf", "back\\slash",
        "@@ -1 +1 @@", "diff --git a b", ":(top)x",
    )  # fmt: skip
    hostile = "--- a/kept\n+++ b/kept\n@@ -1 +1 @@\ndiff --git a/x b/x\n"
    for name in names:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("one\n")
    raw = place / os.fsdecode(b"\xff\xfe")
    raw.write_text("one\n")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "names")
    for name in names:
        (place / name).write_text(hostile)
    raw.write_text(hostile)
    (place / "binary").write_bytes(b"\0\1\2")
    (place / "latin").write_bytes(b"caf\xe9")
    found = await compared(place)
    by_name = {one.path: one for one in found.changes}
    assert by_name.keys() == {*names, "\ufffd\ufffd", "binary", "latin"}
    for name in names:
        expected = "".join(f"+{line}\n" for line in hostile.splitlines())
        assert by_name[name].diff == f"@@ -1 +1,4 @@\n-one\n{expected}", name
    assert (by_name["binary"].diff, by_name["latin"].diff) == (None, None)


async def test_what_is_too_much_is_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "MAX_FILE_BYTES", 1_000)
    monkeypatch.setattr(checkout, "MAX_BYTES", 20_000)
    monkeypatch.setattr(checkout, "MAX_FILES", 30)
    (place / "changed").write_text("x" * 100 + "\n" + "y\n" * 2_000)
    (place / "long").write_text("x" * 1_001)
    found = await compared(place)
    assert {one.path: one.diff for one in found.changes} == {"changed": None, "long": None}
    assert found.is_truncated
    for number in range(40):
        (place / f"n{number:02}").write_text("z" * 900)
    found = await compared(place)
    assert (len(found.changes), found.is_truncated) == (30, True)
    assert sum(len(one.diff or "") for one in found.changes) <= 20_000
    (place / "changed").write_text("x\n" * 20_000)  # git's own output is cut
    found = await compared(place)
    assert found.is_truncated
    assert kinds(found)["changed"] == "update"


async def test_a_comparison_that_takes_too_long_ends(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "GIT_S", 0.0)
    with anyio.fail_after(45):
        assert await this_host().directory_changes(str(place), BEGAN) is None


def test_a_diff_that_was_cut_keeps_its_whole_files() -> None:
    diff = (
        b"diff --git a/one b/one\nindex 1..2 100644\n--- a/one\n+++ b/one\n@@ -1 +1 @@\n-a\n+b\n"
        b"diff --git a/two b/two\nnew file mode 100644\nindex 0..2\n--- /dev/null\n+++ b/two\n"
        b"@@ -0,0 +1,2 @@\n+a\n+"
    )
    one = FileChange("one", "update", "@@ -1 +1 @@\n-a\n+b\n")
    assert next(iter(files_of(diff))) == one
    assert [*files_of(diff, is_cut=True)] == [one, FileChange("two", "add", None)]


def test_a_diff_that_was_cut_tells_of_no_file_whose_name_or_kind_is_not_known() -> None:
    whole = (
        b"diff --git a/one b/one\nindex 1..2 100644\n--- a/one\n+++ b/one\n@@ -1 +1 @@\n-a\n+b\n"
    )
    more = (
        b"diff --git a/dir/two b/dir/two\nnew file mode 100644\nindex 0..2\n--- /dev/null\n"
        b"+++ b/dir/two\n@@ -0,0 +1 @@\n+a\n"
    )
    known = {"one", "dir/two"}
    for end in range(len(whole) + 1, len(whole + more)):
        found = [*files_of((whole + more)[:end], is_cut=True)]
        assert {one.path for one in found} <= known
        assert [one.kind for one in found] == ["update", "add"][: len(found)]
        if end >= len(
            whole + b"diff --git "
        ):  # else a part of that may be a line of the first file
            assert found[0].diff == "@@ -1 +1 @@\n-a\n+b\n"
