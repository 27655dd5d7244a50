"""A session is given another directory."""

from pathlib import Path

from driving import Ctl


def test_a_session_is_moved(ctl: Ctl, tmp_path: Path) -> None:
    session = ctl.field("session.id", "session", "create")
    (tmp_path / "a b").mkdir()
    moved = ctl("session", "move", session, "a b", "--format", "text", cwd=tmp_path)
    assert (moved.code, moved.out) == (0, f"session {session} works in {tmp_path}/a b\n"), moved.err
    assert ctl.field("session.cwd", "session", "get", session) == f"{tmp_path}/a b"
    said = ctl("events", "list", session, "--format", "text").out
    assert f"to {tmp_path}/a b" in said
    by_option = ctl("session", "move", "--session-id", session, str(tmp_path))
    assert by_option.code == 0, by_option.err
    assert ctl.field("session.cwd", "session", "get", session) == str(tmp_path)


def test_an_invalid_move_fails_with_its_reason(ctl: Ctl, tmp_path: Path) -> None:
    session = ctl.field("session.id", "session", "create")
    spawn = ["tool", "session-spawn", "--parent-session-id", session, "--task", "t"]
    for arguments, code, words in (
        (["session", "move"], 2, "name the session"),
        (["session", "move", session], 2, "name the directory"),
        (["session", "move", session, str(tmp_path), "more"], 2, "extra"),
        (["session", "move", session, str(tmp_path / "none")], None, "cwd"),
        (["session", "move", session, "here", "--host", "h"], 2, "absolute path there"),
        (["session", "move", session, str(tmp_path), "--host", "h"], None, "unknown host"),
        (["session", "create", "--host", "h"], 2, "--cwd"),
        ([*spawn, "--host", "h", "--cwd", "here"], 2, "an absolute directory there"),
        (["session", "create", "--label", "gpu"], 2, "--cwd"),
        (["session", "move", "ses_" + "0" * 26, str(tmp_path)], None, "session"),
    ):
        done = ctl(*arguments)
        assert done.code != 0, arguments
        assert code in (None, done.code), (arguments, done)
        assert words in done.err, (arguments, done.err)
        assert "Traceback" not in done.err
