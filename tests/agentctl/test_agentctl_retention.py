"""Events are deleted, and readers go on with those that are left."""

import json
from http.server import BaseHTTPRequestHandler

import httpx
from driving import Ctl
from serving import answering


def test_a_session_is_pruned_and_read_on(ctl: Ctl) -> None:
    session = ctl.field("session.id", "session", "create")
    key = ("--idempotency-key", f"first of {session}")
    first = ctl("ask", "one", "--session-id", session, *key)
    assert first.code == 0, first.err
    assert ctl("ask", "two", "--session-id", session).code == 0
    last = int(ctl.field("session.last_seq", "session", "get", session))

    done = ctl("session", "prune", session, "--retain-events", "3", "--format", "text")
    assert done.code == 0, done.err
    assert done.out == (
        f"session {session}: {last - 3} events deleted; the oldest is now {last - 2}\n"
    )
    card = ctl("session", "get", session, "--format", "text").out
    assert f"{last}, kept from {last - 2} on" in card

    listed = ctl("events", "list", session, "--cursor", "0", "--format", "json")
    assert (listed.code, json.loads(listed.err)["error"]["code"]) == (1, "gone")
    assert json.loads(listed.err)["error"]["details"]["oldest"] == last - 3
    tailed = ctl("events", "tail", session, "--cursor", "0", "--format", "json")
    assert tailed.code == 0, tailed.err
    assert [json.loads(line)["seq"] for line in tailed.out.splitlines()] == [
        last - 2,
        last - 1,
        last,
    ]
    assert "no longer kept" in tailed.err

    # A message that is sent again has its answer, although its run's events are gone.
    sent = (
        "message",
        "send",
        "--session-id",
        session,
        "--text",
        "three",
        "--idempotency-key",
        "k3",
    )
    assert ctl(*sent, "--follow").code == 0
    assert ctl("session", "prune", session, "--retain-events", "1").code == 0
    again = ctl(*sent, "--follow", "--format", "text")
    assert again.code == 0, again.err
    assert "no longer kept" in again.err


def test_limits_of_a_session_are_set_and_bad_ones_refused(ctl: Ctl) -> None:
    session = ctl.field("session.id", "session", "create", "--retain-days", "9")
    refused = ctl("session", "prune", session, "--retain-events", "0")
    assert refused.code == 2, refused.err
    assert "no limits" in refused.err
    said = ctl("session", "retain", session, "--retain-events", "5", "--format", "text")
    assert (said.code, said.out) == (0, f"session {session} keeps 9 days, 5 events\n"), said.err
    said = ctl("session", "retain", session, "--retain-events", "0", "--format", "text")
    assert said.out == f"session {session} keeps 9 days, any number of events\n", said.err
    for wrong in ("-1", "x", "9" * 30):
        assert ctl("session", "retain", session, "--retain-bytes", wrong).code == 2
    assert ctl("session", "prune", "ses_" + "0" * 26, "--retain-days", "1").code == 4


def test_a_log_that_is_pruned_while_it_is_read_is_read_on(ctl: Ctl) -> None:
    session = ctl.field("session.id", "session", "create")
    assert ctl("ask", "one", "--session-id", session).code == 0
    last = int(ctl.field("session.last_seq", "session", "get", session))
    pruned: list[httpx.Response] = []

    class Pruning(BaseHTTPRequestHandler):
        """Passes requests on to the daemon. The first page of events is read after a deletion."""

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path.endswith("/events") and query and not pruned:
                url = f"{ctl.url}/sessions/{session}/prune"
                pruned.append(httpx.post(url, json={"retain_events": 2}, trust_env=False))
            answer = httpx.get(ctl.url + self.path, trust_env=False)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with answering(Pruning) as url:
        tailed = Ctl(url, ctl.cwd)("events", "tail", session, "--format", "json")
    assert tailed.code == 0, tailed.err
    assert [one.status_code for one in pruned] == [200]
    assert [json.loads(line)["seq"] for line in tailed.out.splitlines()] == [last - 1, last]
    assert tailed.err == "agentctl: earlier events are no longer kept, going on after them\n"
