"""Several agentd on one PostgreSQL database: killed, stopped for longer than the lease, and going on."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from cutting import proxied
from postgres import Server
from serving import Process, agentd
from test_agentd_process import call, wait_for

TICKING = "read -r prompt; echo $$ > agent.pid; while :; do echo tick; sleep 0.05; done"
QUICK = "read -r prompt; echo done"


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    """The directories of two daemons. Each has an agent that works on, and one that ends at once."""
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = ["[routing]", 'default = "quick"']
        for provider, script in (("ticking", TICKING), ("quick", QUICK)):
            lines += [f"[providers.{provider}]", 'runner = "command"']
            lines += [f"argv = {json.dumps(['/bin/sh', '-c', script])}"]
        (tmp_path / name / "agentd.toml").write_text("\n".join([*lines, ""]))
        made.append(tmp_path / name)
    return made


def started(daemon: Process, directory: Path) -> tuple[str, str, int]:
    """Start an agent that works on. Return its session and run, and its process."""
    body = {"provider": "ticking", "cwd": str(directory)}
    session = call(daemon, "POST", "/sessions", json=body)["session"]["id"]
    run = send(daemon, session, provider="ticking")
    file = directory / "agent.pid"
    wait_for(lambda: file.exists() and file.read_text().endswith("\n"), "the agent has begun")
    wait_for(lambda: "agent.message" in types(daemon, session), "the agent has said something")
    return session, run, int(file.read_text())


def send(daemon: Process, session: str, **more: Any) -> str:
    body = {"text": "hello", **more}
    return str(call(daemon, "POST", f"/sessions/{session}/messages", json=body)["run"]["id"])


def events(daemon: Process, session: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        cursor = found[-1]["seq"] if found else 0
        path = f"/sessions/{session}/events?cursor={cursor}&limit=500"
        page = call(daemon, "GET", path)["events"]
        if not page:
            return found
        found += page


def types(daemon: Process, session: str) -> list[str]:
    return [event["event_type"] for event in events(daemon, session)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(daemon: Process, run: str) -> dict[str, Any]:
    result: dict[str, Any] = {}

    def has_ended() -> bool:
        result.update(call(daemon, "GET", f"/runs/{run}")["run"])
        return result["status"] in ("completed", "failed", "canceled")

    wait_for(has_ended, "the run has ended")
    return result


def metric(daemon: Process, name: str) -> dict[str, float]:
    """Return a metric of all daemons, by their URL."""
    text = httpx.get(f"{daemon.url}/metrics").text
    return {url: float(value) for url, value in re.findall(rf'{name}{{.*url="(.*?)"}} (.*)', text)}


def away(daemon: Process) -> set[str]:
    """Return the URLs of the daemons that count as away. On a busy machine, a heartbeat may come late."""
    shown = call(daemon, "GET", "/daemon/status")["daemons"]
    return {one["url"] for one in shown if one["away_since"] is not None}


def check_log(daemon: Process, session: str, run: str) -> None:
    """Check that the log has no gap, and nothing of a run after its end, which is there once."""
    log = events(daemon, session)
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    of_run = [event["event_type"] for event in log if event["run_id"] == run]
    assert of_run.count("run.recovered") == 1
    assert of_run[-1] == "run.failed"
    assert of_run.count("run.failed") == 1
    assert call(daemon, "GET", "/daemon/check")["ok"]


def test_another_daemon_takes_over_from_a_killed_one(directories, database, postgres):
    url = database()
    here, there = directories
    with agentd(here, "--store", url) as a, agentd(there, "--store", url) as b:
        session, run, agent = started(a, here)
        queued = send(b, session, provider="quick")
        with httpx.stream("GET", f"{b.url}/stream?sessionId={session}", timeout=60) as stream:
            a.signal(signal.SIGKILL)
            # It does not wait for the end of the lease of a process that is gone.
            postgres.run(
                "UPDATE agent_orchestrator.daemons SET expires_at = expires_at + interval '1 hour'"
                f" WHERE pid = {a.pid} AND ended_at IS NULL",
                url.rpartition("/")[2],
            )
            next(line for line in stream.iter_lines() if '"run.recovered"' in line)
        wait_for(lambda: away(b) == {a.url}, "only the killed one is away")
        daemons = call(b, "GET", "/daemon/status")["daemons"]
        [shown] = [one for one in daemons if one["url"] == a.url]
        assert shown["away_since"] > shown["started_at"]
        up = {a.url: 0, b.url: 1}
        wait_for(lambda: metric(b, "agentd_daemon_up") == up, "the metrics show that")
        name = "agentd_daemon_away_since_seconds"
        wait_for(lambda: metric(b, name).keys() == {a.url}, "the metrics show since when")
        lost = ended(b, run)
        assert (lost["status"], lost["error"]["code"]) == ("failed", "worker_lost")
        assert ended(b, queued)["status"] == "completed"
        wait_for(lambda: not is_alive(agent), "its agent has ended")
        check_log(b, session, run)


def test_a_stopped_daemon_is_followed_and_begins_anew(directories, database):
    url = database()
    here, there = directories
    with agentd(here, "--store", url) as a, agentd(there, "--store", url) as b:
        session, run, agent = started(a, here)
        a.signal(signal.SIGSTOP)
        try:
            lost = ended(b, run)  # after the lease, and a heartbeat
            assert (lost["status"], lost["error"]["code"]) == ("failed", "worker_lost")
            wait_for(lambda: not is_alive(agent), "its agent has ended")
            before = events(b, session)
            assert a.url in away(b)
        finally:
            a.signal(signal.SIGCONT)

        def goes_on() -> bool:
            try:
                again = send(a, session, provider="quick")
            except AssertionError:  # refused: it has lost its lease
                return False
            return ended(a, again)["status"] == "completed"

        wait_for(goes_on, "it has begun anew")
        wait_for(lambda: away(b) == set(), "both are there")
        assert len(call(b, "GET", "/daemon/status")["daemons"]) == 2
        assert "begins anew" in a.stderr()
        codes = [problem["code"] for problem in call(a, "GET", "/daemon/status")["problems"]]
        assert "lease_lost" not in codes
        assert [event for event in events(b, session) if event["run_id"] == run] == [
            event for event in before if event["run_id"] == run
        ]
        check_log(b, session, run)
        assert os.path.exists(f"/proc/{a.pid}")


def test_a_daemon_behind_a_proxy_that_forwards_nothing_is_followed_and_begins_anew(
    directories, database, postgres: Server
):
    """Its connections stay open, so nothing tells it that it is cut off."""
    url = database()
    here, there = directories
    with proxied(postgres.port) as proxy:
        through = url.replace(f":{postgres.port}/", f":{proxy.port}/")
        assert through != url
        with agentd(here, "--store", through) as a, agentd(there, "--store", url) as b:
            session, run, agent = started(a, here)
            proxy.hold()
            lost = ended(b, run)  # after the lease, and a heartbeat
            assert (lost["status"], lost["error"]["code"]) == ("failed", "worker_lost")
            wait_for(lambda: not is_alive(agent), "its agent has ended")
            before = events(b, session)
            # It notices by itself, and says so instead of letting callers wait.
            message = {"text": "hello", "provider": "quick"}
            refused = httpx.post(f"{a.url}/sessions/{session}/messages", json=message, timeout=120)
            assert refused.status_code == 503
            assert "Retry-After" in refused.headers
            proxy.release()  # what it has said meanwhile arrives late

            def has_begun_anew() -> bool:
                daemons = call(b, "GET", "/daemon/status")["daemons"]
                return [one["away_since"] for one in daemons] == [None, None]

            wait_for(has_begun_anew, "it has begun anew")
            assert "begins anew" in a.stderr()
            again = send(a, session, provider="quick")
            assert ended(b, again)["status"] == "completed"
            assert [event for event in events(b, session) if event["run_id"] == run] == [
                event for event in before if event["run_id"] == run
            ]
            check_log(b, session, run)
