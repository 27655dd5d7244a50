"""agentctl token, and the audit trail it leaves."""

from driving import Ctl


def test_tokens(ctl: Ctl) -> None:
    made = ctl("token", "create", "phone", "--principal", "ann", "--scope", "read",
               "--format=json").json  # fmt: skip
    token_id = made["token"]["id"]
    assert made["token"]["scopes"] == ["read"]
    assert made["secret"].startswith("apt_")
    shown = ctl("token", "create", "ci", "--expires-in-s", "3600").out
    assert "apt_" in shown
    assert "read, write, approve" in shown
    asked = ctl("--auth-token", made["secret"], "session", "list", "--format=json")
    assert (asked.code, asked.json["sessions"]) == (0, [])
    refused = ctl("--auth-token", made["secret"], "session", "create")
    assert refused.code == 5
    assert "scope write" in refused.err
    assert "revoked" in ctl("token", "revoke", token_id).out
    assert ctl("--auth-token", made["secret"], "session", "list").code == 5
    listed = ctl("token", "list").out
    assert made["secret"] not in listed
    assert [line.split()[1] for line in listed.splitlines()] == ["STATE", "revoked", "good,"]
    trail = ctl("daemon", "audit").out
    assert [line.split()[4:6] for line in trail.splitlines()[1:]][:1] == [["none", "create_token"]]
    assert "revoke_token" in trail
