"""What agentctl says of takeovers that cannot be. The real ones are among the tests of the agents."""

from pathlib import Path

from driving import Ctl


def test_attach_and_adopt_refuse_invalid_calls_with_the_reason(ctl: Ctl, tmp_path: Path) -> None:
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
