"""What agentctl says of takeovers that cannot be. The real ones are among the tests of the agents."""

from pathlib import Path

from driving import Ctl


def test_what_cannot_be_taken_over_is_refused_in_words(ctl: Ctl, tmp_path: Path) -> None:
    session = ctl.field("session.id", "session", "create")
    for arguments, code, words in (
        (["attach"], 2, "name the session"),
        (["attach", session], 2, "needs a terminal"),
        (["adopt"], 2, "PROVIDER"),
        (["adopt", "demo"], 2, "--last"),
        (["adopt", "demo", "thread", "--last"], 2, "--last"),
        (["adopt", "demo", "--last", "--cwd", str(tmp_path)], 2, "demo has no program"),
        (["adopt", "none", "thread"], 2, "unknown provider"),
    ):
        done = ctl(*arguments)
        assert words in done.err, (arguments, done)
        assert done.code == code, (arguments, done)
        assert "Traceback" not in done.err
