"""agentd on a PostgreSQL database: killed, cut off, stopped and restored, without showing its password."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest
from postgres import served
from serving import agentd, environment, run_agentd
from test_agentd_process import call, wait_for

from agent_orchestrator.user_state import user_state

PASSWORD = "hunter-22"
LEASE_S = 10.0
MARGIN_S = 20.0
"""How late a supervisor may be that waits for a processor: that of a daemon which starts again is as late."""


def with_password(url: str) -> str:
    """Return a URL with a password, which a server that trusts its users does not ask for."""
    return url.replace("owner@", f"owner:{PASSWORD}@")


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A directory whose agent says something, and goes on until a file is there."""
    script = "read -r prompt; echo begun; until [ -e go ]; do sleep 0.05; done; echo done"
    provider = {"runner": "command", "argv": ["/bin/sh", "-c", script]}
    lines = [f"{key} = {json.dumps(value)}" for key, value in provider.items()]
    (tmp_path / "agentd.toml").write_text("\n".join(["[providers.slow]", *lines, ""]))
    return tmp_path


def started(daemon, directory):
    session = call(daemon, "POST", "/sessions", json={})["session"]["id"]
    sent = call(daemon, "POST", f"/sessions/{session}/messages", json={"text": "hello"})

    def said():
        events = call(daemon, "GET", f"/sessions/{session}/events")["events"]
        return any(event["event_type"] == "agent.message" for event in events)

    wait_for(said, "the agent has said something")
    return session, sent["run"]["id"]


def test_the_work_of_a_killed_daemon_is_taken_up_at_once(slow, database):
    url = database()
    with agentd(slow, "--store", url) as daemon:
        _, run = started(daemon, slow)
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    (slow / "ready.json").unlink()
    (slow / "go").touch()
    with agentd(slow, "--store", url) as daemon:
        ended = call(daemon, "GET", f"/runs/{run}/wait")["run"]
        # This agent cannot be resumed.
        assert (ended["status"], ended["error"]["code"]) == ("failed", "worker_lost")
        assert not list(slow.rglob("*.db*")), "nothing is written beside a database file"


def test_a_stream_goes_on_when_the_server_is_back(slow):
    with served() as server, agentd(slow, "--store", server.new_database()) as daemon:
        session, run = started(daemon, slow)
        with httpx.stream("GET", f"{daemon.url}/stream?sessionId={session}", timeout=60) as stream:
            lines = stream.iter_lines()
            server.stop(signal.SIGQUIT)
            refused = httpx.post(f"{daemon.url}/sessions", json={})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["details"]["problem"] == "database_unreachable"
            (slow / "go").touch()  # the agent ends meanwhile
            server.start()
            ended = next(line for line in lines if '"run.completed"' in line)
        seq = json.loads(ended.removeprefix("data:"))["seq"]
        events = call(daemon, "GET", f"/sessions/{session}/events")["events"]
        assert [event["seq"] for event in events] == list(range(1, seq + 1))
        texts = [e["data"]["text"] for e in events if e["event_type"] == "agent.message"]
        assert texts == ["begun", "done"]
        assert call(daemon, "GET", f"/runs/{run}")["run"]["status"] == "completed"


def test_the_password_is_shown_nowhere(tmp_path, postgres, database):
    name = database()
    url = with_password(name)
    # Another daemon's refusal, the status, the log, and the endpoint file.
    with agentd(tmp_path, env={"AGENTD_STORE": url}) as daemon:
        status = httpx.get(f"{daemon.url}/daemon/status").text
        assert "postgresql://owner@127.0.0.1" in status
        sql = "UPDATE agent_orchestrator.daemons SET version = NULL"  # as an earlier version does
        postgres.run(sql, name.rpartition("/")[2])
        refused = run_agentd(tmp_path, "--port", "0", env={"AGENTD_STORE": url})
        assert refused.returncode == 1
        assert f"in use by process {daemon.pid}" in refused.stderr
        endpoint = (user_state().daemons / f"{daemon.pid}.json").read_text()
        doctor = run_agentd(tmp_path, "--doctor", "--store", url)
        assert "the database's password was given on the command line" in doctor.stdout
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        shown = (status, refused.stderr, endpoint, daemon.stderr(), doctor.stdout)
        assert not [text for text in shown if PASSWORD in text]
    report = json.loads(user_state().last_stop.read_text())
    assert report["pid"] == daemon.pid


def test_agentctl_hides_the_url_from_the_process_list(tmp_path, database):
    from agentctl.daemon_process import _environment, _without_store
    from agentctl.settings import CallSettings

    url = with_password(database())
    for options in (["--store", url, "--port", "0"], ["--port", "0", f"--store={url}"]):
        assert _without_store(options) == ["--port", "0"]
        assert _environment(CallSettings(), options)["AGENTD_STORE"] == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "postgresql://ann:{}@127.0.0.1:1/db?connect_timeout=2",
            "cannot open postgresql://ann@127",
        ),
        ("postgresql://ann:{}@127.0.0.1:port/db", "cannot open postgresql://ann@127.0.0.1:port"),
        ("postgresql://ann:x@{}@127.0.0.1/db", "escape the characters"),
        ("mysql://ann:{}@127.0.0.1/db", "no installed package has a store for mysql://"),
    ],
)
def test_an_unusable_url_is_refused_in_a_sentence(tmp_path, url, said):
    pytest.importorskip("psycopg")
    done = run_agentd(tmp_path, "--port", "0", env={"AGENTD_STORE": url.format(PASSWORD)})
    assert done.returncode == 1
    assert said in done.stderr
    assert PASSWORD not in done.stderr
    assert all(line.startswith("agentd: ") for line in done.stderr.splitlines())


def test_a_missing_extra_is_named(tmp_path):
    (tmp_path / "psycopg").mkdir()
    (tmp_path / "psycopg" / "__init__.py").write_text(
        "raise ImportError('not here', name='psycopg')"
    )
    program = (
        "import sys; from agentd.cli import main; sys.argv = ['agentd', '--port', '0']; main()"
    )
    done = subprocess.run(
        [os.sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(AGENTD_STORE="postgresql://x/y", PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'agent-orchestrator[postgres]'" in done.stderr


def test_a_dump_is_restored_into_another_database(tmp_path, postgres, database):
    """As docs/postgresql.md says."""
    url = database()
    with agentd(tmp_path, "--store", url) as daemon:
        session = call(daemon, "POST", "/sessions", json={"title": "kept"})["session"]["id"]
        backup = httpx.post(f"{daemon.url}/daemon/backup", json={"path": str(tmp_path / "x.db")})
        assert backup.status_code == 409
        assert "use pg_dump" in backup.text
        dump = tmp_path / "agents.dump"
        subprocess.run(
            [
                postgres.bin / "pg_dump",
                *("--format", "custom", "--schema", "agent_orchestrator", "--file", dump, url),
            ],
            check=True,
        )
        lost = call(daemon, "POST", "/sessions", json={"title": "lost"})["session"]["id"]
        stream = httpx.get(f"{daemon.url}/sessions/{lost}").json()["session"]
        assert stream["title"] == "lost"
    (tmp_path / "ready.json").unlink(missing_ok=True)
    copy = postgres.new_database()
    subprocess.run([postgres.bin / "pg_restore", "--dbname", copy, dump], check=True)
    with agentd(tmp_path, "--store", copy) as daemon:
        sessions = call(daemon, "GET", "/sessions")["sessions"]
        assert [one["id"] for one in sessions] == [session]
        assert call(daemon, "GET", "/daemon/check")["ok"]


def agent_of(daemon, run):
    """Return the process of a run's agent."""
    tree = call(daemon, "GET", f"/runs/{run}/diagnose")["diagnostics"]["process_tree"]
    return psutil.Process(tree[0]["pid"])


def test_agents_end_with_the_lease_of_a_stopped_daemon(slow, database, postgres):
    """Another daemon may take over then. When this one goes on and nobody has, its runs are begun again."""
    url = database()
    with agentd(slow, "--store", url) as daemon:
        _, run = started(daemon, slow)
        agent = agent_of(daemon, run)
        daemon.signal(signal.SIGSTOP)
        try:
            query = "SELECT extract(epoch FROM max(expires_at)) FROM agent_orchestrator.daemons"
            [[expires_at]] = postgres.run(query, url.rpartition("/")[2])
            left = float(expires_at) - time.time()
            assert 0 < left <= LEASE_S
            agent.wait(timeout=left + MARGIN_S)
        finally:
            daemon.signal(signal.SIGCONT)
        (slow / "go").touch()
        ended = call(daemon, "GET", f"/runs/{run}/wait?timeout_s=60")["run"]
        assert (ended["status"], ended["attempt"]) == ("completed", 2)
        assert "the agents were killed" in daemon.stderr()


def test_agents_end_with_the_lease_of_a_daemon_that_is_cut_off(slow):
    with served() as server, agentd(slow, "--store", server.new_database()) as daemon:
        _, run = started(daemon, slow)
        agent = agent_of(daemon, run)
        stopped_at = time.monotonic()
        server.stop()
        agent.wait(timeout=LEASE_S + MARGIN_S)
        assert time.monotonic() - stopped_at > LEASE_S / 2
        (slow / "go").touch()
        server.start()
        ended = call(daemon, "GET", f"/runs/{run}/wait?timeout_s=60")["run"]
        assert (ended["status"], ended["attempt"]) == ("completed", 2)
