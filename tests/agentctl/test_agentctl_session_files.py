"""A session is exported, archived and imported."""

import json
import os
from pathlib import Path

from driving import Ctl, Daemon, Result


def told(ctl: Ctl) -> str:
    session = ctl.field("session.id", "session", "create", "--title", "the story")
    assert ctl("ask", "one", "--session-id", session).code == 0
    return session


def test_a_session_is_exported_and_imported(ctl: Ctl, tmp_path: Path) -> None:
    session, file = told(ctl), tmp_path / "story.jsonl"
    done = ctl("session", "export", session, str(file), "--format", "text")
    assert done.code == 0, done.err
    assert done.out.startswith(f"session {session} is in {file}: ")
    assert file.stat().st_mode & 0o777 == 0o600
    printed = ctl("session", "export", session)
    assert printed.code == 0, printed.err
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [lines[0]["kind"], lines[-1]["kind"]] == ["header", "end"]
    assert ctl("session", "export", session, str(file)).code == 2
    assert ctl("session", "export", session, str(tmp_path / "no" / "file")).code == 2
    taken = ctl("session", "import", str(file))
    assert (taken.code, "import with `--new-id`" in taken.err) == (6, True), taken.err
    again = ctl("session", "import", str(file), "--new-id", "--format", "text")
    assert again.code == 0, again.err
    assert "is imported: 1 run, 1 message, 0 requests, " in again.out
    for data in (b"", b"{}\n", file.read_bytes()[:-1]):
        (tmp_path / "bad").write_bytes(data)
        refused = ctl("session", "import", str(tmp_path / "bad"), "--new-id")
        assert (refused.code, "line " in refused.err) == (2, True), refused.err
    assert ctl("session", "import", str(tmp_path / "none")).code == 2
    assert ctl("session", "import", "~no-such-user").code == 2


def test_a_file_is_imported_from_standard_input(ctl: Ctl) -> None:
    session = told(ctl)
    file = ctl("session", "export", session).out
    before = ctl("session", "list", "--format", "json").json["sessions"]
    bad = {"": "is empty", "{}\n": "line 1, kind", file[:-20]: "was cut", file * 2: "kind"}
    for data, problem in bad.items():
        refused = ctl("session", "import", "-", "--new-id", "--format", "json", stdin=data)
        error = json.loads(refused.err)["error"]
        assert (refused.code, error["code"]) == (2, "invalid_request"), refused.err
        assert problem in error["message"]
    assert ctl("session", "list", "--format", "json").json["sessions"] == before
    done = ctl("session", "import", "-", "--new-id", "--format", "json", stdin=file)
    assert done.code == 0, done.err
    assert (done.json["runs"], done.json["session"]["title"]) == (1, "the story")
    assert done.json["session"]["id"] != session


def test_an_archive_deletes_what_the_file_has(ctl: Ctl, tmp_path: Path) -> None:
    session, file = told(ctl), tmp_path / "story.jsonl"
    last = int(ctl.field("session.last_seq", "session", "get", session))
    file.write_text("another's")
    assert ctl("session", "archive", session, str(file)).code == 2
    assert ctl.field("session.oldest_cursor", "session", "get", session) == "0"
    file.unlink()
    done = ctl("session", "archive", session, str(file), "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["deleted_count"] == last
    assert os.listdir(tmp_path).count("story.jsonl") == 1  # noqa: PTH208
    assert ctl.field("session.status", "session", "get", session) == "closed"
    assert ctl.field("session.oldest_cursor", "session", "get", session) == str(last)
    assert len(file.read_text().splitlines()) == last + 4

    held = ctl.field("session.id", "session", "create")
    assert (
        ctl("message", "send", "--session-id", held, "--text", "x", "--provider", "manual").code
        == 0
    )
    busy = ctl("session", "archive", held, str(tmp_path / "held"))
    assert (busy.code, "is queued" in busy.err) == (6, True), busy.err
    assert not (tmp_path / "held").exists()


def test_an_archive_is_refused_to_others_before_there_is_a_file(
    guarded: Daemon, tmp_path: Path
) -> None:
    def by(token: str, *arguments: str) -> Result:
        return guarded.ctl("--auth-token", token, *arguments)

    make = ("token", "create", "--field", "secret")
    ann, bob = (by("s3cret", *make, name).out.strip() for name in ("ann", "bob"))
    limited = (*make, "ann-reads", "--principal", "ann", "--scope", "read")
    reading = by("s3cret", *limited).out.strip()
    session = by(ann, "session", "create", "--field", "session.id").out.strip()
    assert by(ann, "session", "share", session, "--writer", "bob").code == 0
    directory = tmp_path / "files"
    directory.mkdir()
    for token in (bob, reading):
        refused = by(token, "session", "archive", session, str(directory / "story.jsonl"))
        assert refused.code == 5, refused.err
        assert list(directory.iterdir()) == []
    assert by(ann, "session", "get", session, "--field", "session.status").out.strip() == "open"
    assert by(ann, "session", "archive", session, str(directory / "story.jsonl")).code == 0
