"""agentd of two hosts on one PostgreSQL database: only a daemon of the same host takes over from a killed one."""

import json
import signal

from driving import environment, run
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


def test_a_relative_directory_is_not_sent_for_a_session_of_another_host(directories, database):
    """It is one of the machine of the caller."""
    url = database()
    here, there = directories
    (here / "project").mkdir()
    with (
        agentd(here, "--store", url, "--host-name", "x") as a,
        agentd(there, "--store", url, "--host-name", "y") as b,
    ):
        near, far = (
            call(daemon, "POST", "/sessions", json={"cwd": str(cwd)})["session"]["id"]
            for daemon, cwd in ((a, here), (b, there))
        )

        def agentctl(*arguments):
            return run(arguments, here, environment(AGENTCTL_URL=a.url))

        moving = ("session", "move", far, "project")
        runs = {session: send(a, session, provider="quick") for session in (near, far)}
        for run_id in runs.values():
            assert ended(a, run_id)["status"] == "completed"
        spawning = ("tool", "session-spawn", "--task", "hello", "--cwd", "project")
        by_session, by_run = ("--parent-session-id", far), ("--parent-run-id", runs[far])
        for arguments in (moving, (*spawning, *by_session), (*spawning, *by_run)):
            refused = agentctl(*arguments)
            assert refused.code == 2
            assert "the session is on the host y: name an absolute directory there" in refused.err
        assert call(a, "GET", f"/sessions/{far}")["session"]["cwd"] == str(there)
        spawned = agentctl(*spawning, "--parent-run-id", runs[near])
        assert spawned.code == 0, spawned.err
        assert json.loads(spawned.out)["session"]["cwd"] == str(here / "project")
        for session, directory in ((near, "project"), (far, "/srv/project")):
            done = agentctl("session", "move", session, directory)
            assert done.code == 0, done.err
        assert call(a, "GET", f"/sessions/{near}")["session"]["cwd"] == str(here / "project")
        assert call(a, "GET", f"/sessions/{far}")["session"]["cwd"] == "/srv/project"
