"""agentctl session share."""

from driving import Daemon


def test_session_share_grants_and_revokes_access(guarded: Daemon) -> None:
    ctl = guarded.ctl
    secret = {
        name: ctl(
            "--auth-token", "s3cret", "token", "create", name, "--field", "secret"
        ).out.strip()
        for name in ("ann", "bob")
    }

    def by(name: str, *arguments: str):
        return ctl("--auth-token", secret[name], *arguments)

    made = by("ann", "session", "create", "--field", "session.id").out.strip()
    assert by("bob", "session", "get", made).code == 4
    assert "not shared" in by("ann", "session", "share", made).out
    shared = by("ann", "session", "share", made, "--reader", "bob", "--writer", "carol")
    assert [line.split() for line in shared.out.splitlines()[1:]] == [
        ["reader", "bob"],
        ["writer", "carol"],
    ]
    assert by("bob", "session", "get", made).code == 0
    assert by("bob", "session", "close", made).code == 5
    assert by("bob", "session", "share", made, "--owner", "bob").code == 5
    more = by("ann", "session", "share", made, "--owner", "bob", "--format=json").json
    assert {one["principal"]: one["role"] for one in more["grants"]} == {
        "bob": "owner",
        "carol": "writer",
    }
    assert by("bob", "session", "close", made).code == 0
    left = by("ann", "session", "share", made, "--remove", "bob", "--field", "grants.0.principal")
    assert left.out.strip() == "carol"
    assert by("bob", "session", "get", made).code == 4
    twice = by("ann", "session", "share", made, "--reader", "bob", "--remove", "bob")
    assert (twice.code, "bob is given two different roles" in twice.err) == (2, True)
    wrong = by("ann", "session", "share", made, "--reader", "two words")
    assert (wrong.code, "must match" in wrong.err) == (2, True)
