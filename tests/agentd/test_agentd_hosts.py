"""agentd of two hosts on one PostgreSQL database: only a daemon of the same host takes over from a killed one."""

import signal

from serving import agentd
from test_agentd_process import call, wait_for
from test_agentd_shared import directories, ended, is_alive, send, started, types

__all__ = ["directories"]


def issue_of(daemon, run):
    return call(daemon, "GET", f"/runs/{run}/diagnose")["diagnostics"]["likely_issue"]


def test_runs_of_a_killed_daemon_wait_for_its_host(directories, database):
    url = database()
    here, there = directories
    with agentd(here, "--store", url, "--host-name", "x") as a:
        with agentd(there, "--store", url, "--host-name", "y") as b:
            session, run, agent = started(b, there)
            assert call(a, "GET", f"/sessions/{session}")["session"]["host"] == "y"
            queued = send(a, session, provider="quick")
            b.signal(signal.SIGKILL)
            wait_for(lambda: issue_of(a, run)["code"] == "host_away", "its host is away")
            assert "since" in issue_of(a, run)["message"]
        wait_for(lambda: not is_alive(agent), "its supervisor has ended the agent")
        near = call(a, "POST", "/sessions", json={"cwd": str(here)})["session"]
        assert near["host"] == "x"
        done = ended(a, send(a, near["id"], provider="quick"))
        assert done["status"] == "completed"
        # Nothing was decided here about the other host's runs, although they came first.
        assert call(a, "GET", f"/runs/{run}")["run"]["status"] == "running"
        assert call(a, "GET", f"/runs/{queued}")["run"]["status"] == "queued"
        assert issue_of(a, queued)["code"] == "queued_behind_run"
        call(a, "POST", f"/runs/{run}/cancel")
        assert "run.recovered" not in types(a, session)
        with agentd(there, "--store", url, "--host-name", "y") as b:
            assert ended(a, run)["status"] == "canceled"
            assert types(a, session).count("run.recovered") == 1
            assert ended(a, queued)["status"] == "completed"
            attempts = call(a, "GET", f"/runs/{queued}/diagnose")["diagnostics"]["attempts"]
            assert [attempt["host"] for attempt in attempts] == ["y"]
            assert call(b, "GET", "/daemon/check")["ok"]
