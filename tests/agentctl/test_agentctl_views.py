"""Objects as a person reads them: golden texts."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from agent_orchestrator.domain.capabilities import Capabilities, InputLimit
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Image, Run, RunError, RunResult, Session, Usage
from agent_orchestrator.operations.daemon import (
    DaemonStatus,
    DaemonView,
    Problem,
    ProviderStatus,
    StoreStatus,
)
from agent_orchestrator.operations.runs import (
    AttemptView,
    DiagnosisReply,
    Diagnostics,
    InvocationView,
    Issue,
    ProcessView,
    QueueCounts,
)
from agent_orchestrator.operations.sessions import SessionTree
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.testing.stores.samples import a_message
from agentctl.console import screen_lines
from agentctl.daemon_process import process_of
from agentctl.document import plain_lines
from agentctl.failures import Failure
from agentctl.times import ago, duration
from agentctl.views import (
    daemon_overview,
    diagnosis,
    ended,
    message_table,
    provider_cards,
    run_card,
    run_table,
    session_card,
    tree_table,
)

NOW = datetime(2026, 3, 4, 9, 30, tzinfo=UTC)

RUN = Run(
    id="run_1", session_id="ses_1", message_id="msg_1", parent_run_id=None, provider="codex",
    model=None, status=RunStatus.COMPLETED, waiting_on=None, attempt=1, worker_id="dmn/worker-1",
    thread_id="th", result=RunResult("All\ngood \x1b[2J"), error=None, usage=Usage(10, 0, 5, 0.25),
    exit_code=0, cancel_requested_at=None, cancel_reason=None, created_at=NOW - timedelta(minutes=3),
    started_at=NOW - timedelta(seconds=170), finished_at=NOW - timedelta(seconds=20),
)  # fmt: skip
FAILED = evolve(RUN, status=RunStatus.FAILED, result=None, error=RunError("timeout", "too\nlate"))

SESSION = Session(
    id="ses_1", title="Build", owner="local", provider=None, model=None, cwd="/src", status="open",
    parent_session_id=None, parent_run_id=None, root_session_id="ses_1", depth=0, metadata={},
    threads={"codex": "th"}, last_seq=7, created_at=NOW - timedelta(days=2), updated_at=NOW,
)  # fmt: skip

STATUS = DaemonStatus(
    daemon_health="degraded", version="1.0", pid=42, uptime_s=3720.0, started_at=NOW,
    alive_workers=3, max_concurrency=4, queue_counts=QueueCounts(2, 1, 0),
    providers=[
        ProviderStatus("codex", "codex", available=False, reason="not logged in", version="0.169.0", default=True, logged_in=False,
                       capabilities=Capabilities(resume=True, images=True, max_input=InputLimit(9))),
        ProviderStatus("demo", "demo", available=True, reason=None, version=None),
    ],
    store=StoreStatus("sqlite", "/data/a.db", 1, 1234),
    problems=[Problem("worker_lost", "a worker ended")],
)  # fmt: skip


@pytest.mark.usefixtures("in_utc")
def test_the_run_card_shows_status_times_and_usage() -> None:
    assert list(plain_lines(run_card(RUN, NOW))) == [
        "run run_1",
        "  status     completed",
        "  session    ses_1",
        "  provider   codex",
        "  worker     dmn/worker-1",
        "  thread     th",
        "  created    3 min ago  (2026-03-04 09:27:00)",
        "  took       2 min 30 s",
        "  used       10 tokens in, 5 out · $0.2500",
        "  exit code  0",
        "",
        "All",
        "good",
    ]


def test_the_last_line_of_a_run_shows_outcome_time_and_cost() -> None:
    assert [*plain_lines(ended(FAILED, NOW))] == [
        "run run_1 ✗ failed after 2 min 30 s · 10 tokens in, 5 out · $0.2500",
        "",
        "timeout: too",
        "late",
    ]


def test_the_run_table_shows_one_line_for_each_run() -> None:
    assert [*plain_lines(run_table([RUN, FAILED], NOW))] == [
        "RUN    STATUS     PROVIDER    CREATED        TOOK  SESSION  OUTCOME",
        "run_1  completed  codex     3 min ago  2 min 30 s  ses_1    All good",
        "run_1  failed     codex     3 min ago  2 min 30 s  ses_1    timeout: too late",
    ]
    assert [*plain_lines(run_table([], NOW))] == ["no runs"]


@pytest.mark.usefixtures("in_utc")
def test_the_session_card_shows_its_settings() -> None:
    assert [*plain_lines(session_card(SESSION, NOW))] == [
        "session ses_1",
        "  title      Build",
        "  status     open",
        "  provider   (default)",
        "  directory  /src",
        "  threads    codex th",
        "  owner      local",
        "  events     7",
        "  created    2 d ago  (2026-03-02 09:30:00)",
        "  updated    now  (2026-03-04 09:30:00)",
    ]


def branch(number: int, title: str | None, *runs: Run, children: tuple[SessionTree, ...] = (),
           **changes: Any) -> SessionTree:  # fmt: skip
    session = evolve(SESSION, id=f"ses_{number}", title=title, **changes)
    return SessionTree(session, runs, children)


RUNNING = evolve(RUN, status=RunStatus.RUNNING, result=None, finished_at=None)
QUEUED = evolve(RUN, status=RunStatus.QUEUED, result=None, started_at=None, finished_at=None)
TREE = branch(
    1, "Release", RUN, QUEUED,
    children=(
        branch(2, "Tests", FAILED, RUNNING, QUEUED, provider="codex", children=(
            branch(4, None, QUEUED, provider="echo"),
            branch(5, "Fuzz \x1b[2J\nall", evolve(RUNNING, status=RunStatus.WAITING)),
        )),
        branch(3, "Docs", FAILED, provider="codex", status="closed", children=(
            branch(6, "Links", evolve(RUN, status=RunStatus.CANCELED)),
            branch(7, "Spelling"),
        )),
    ),
)  # fmt: skip


def test_the_tree_shows_each_session_under_its_parent() -> None:
    assert [*plain_lines(tree_table(TREE, NOW))] == [
        "SESSION      STATUS                      PROVIDER   RUNS      SINCE  TITLE",
        "ses_1        · queued                    (default)     2  3 min ago  Release",
        "├─ ses_2     ● running                   codex         3  2 min ago  Tests",
        "│  ├─ ses_4  · queued                    echo          1  3 min ago",
        "│  └─ ses_5  ? waiting                   (default)     1  2 min ago  Fuzz all",
        "└─ ses_3     ✗ failed: timeout (closed)  codex         1   20 s ago  Docs",
        "   ├─ ses_6  ■ canceled                  (default)     1   20 s ago  Links",
        "   └─ ses_7  no run                      (default)     0    2 d ago  Spelling",
    ]


def test_tree_on_a_narrow_terminal_keeps_its_ids() -> None:
    lines = screen_lines(tree_table(TREE, NOW), 60, colour=False)
    assert all(len(line) <= 60 for line in lines)
    assert all(f"ses_{number}" in "".join(lines) for number in range(1, 8))


def test_the_overview_lists_the_daemons_that_share_the_store() -> None:
    shared = [
        DaemonView(
            "dmn_1",
            "host",
            42,
            NOW,
            NOW,
            "1.0",
            "http://127.0.0.1:1",
            4,
            ("demo",),
            3,
            host="x",
            spawn_directory="/srv/c",
        ),
        DaemonView("dmn_2", "host", 43, NOW, NOW, None, None, None, (), 0),
    ]
    status = evolve(STATUS, daemons=shared, daemon_id="dmn_2", problems=[])
    lines = [line.split() for line in plain_lines(daemon_overview(status, "http://127.0.0.1:2"))]
    assert lines[-3:] == [
        ["DAEMON", "HOST", "RUNS", "VERSION", "URL", "PROCESS", "NOTE"],
        [
            *("dmn_1", "x", "3", "of", "4", "1.0", "http://127.0.0.1:1", "42", "on", "host"),
            *("spawn", "directory", "/srv/c"),
        ],
        ["dmn_2", "(starting)", "0", "of", "?", "43", "on", "host", "(this", "one)"],
    ]


def test_the_table_of_daemons_shows_their_labels_and_fits_80_columns() -> None:
    shared = [
        DaemonView(
            f"dmn_0123456789a{number}",
            f"build-machine-{number}.example.org",
            1_234_567,
            NOW,
            NOW,
            "10.11.12",
            "http://127.0.0.1:18765",
            16,
            ("codex", "claude"),
            12,
            host=f"m-0123456789a{number}",
            labels=("gpu", "region=eu-central"),
            draining=number == 2,
            away_since=NOW if number == 1 else None,
        )
        for number in (1, 2)
    ]
    status = evolve(STATUS, daemons=shared, daemon_id="dmn_0123456789a2", problems=[])
    blocks = daemon_overview(status, "http://127.0.0.1:2")
    lines = screen_lines(blocks, 80, colour=False)
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert [line[:72].rstrip() for line in lines[-3:]] == [  # a day and a time follow
        "DAEMON            HOST            LABELS            RUNS      NOTE",
        "dmn_0123456789a1  m-0123456789a1  gpu, region=eu-…  12 of 16  away since",
        "dmn_0123456789a2  m-0123456789a2  gpu, region=eu-…  12 of 16  (this one)",
    ]
    wider = screen_lines(blocks, 110, colour=False)
    assert wider[-3].split() == ["DAEMON", "HOST", "LABELS", "RUNS", "VERSION", "NOTE"]
    plain = "\n".join(plain_lines(blocks))
    assert "gpu, region=eu-central" in plain
    assert "(this one) draining" in plain


def test_the_daemon_overview_shows_workers_queue_and_providers() -> None:
    assert [*plain_lines(daemon_overview(STATUS, "http://127.0.0.1:8765"))] == [
        "agentd 1.0 at http://127.0.0.1:8765: degraded",
        "  running  for 1 h 02 min, pid 42",
        "  workers  3 of 4 alive",
        "  runs     2 queued, 1 running, 0 waiting",
        "  store    sqlite /data/a.db",
        "           1,234 events, schema 1",
        "",
        "PROVIDER  READY  VERSION  LOGIN  RUNNER  NOTE                     CAN",
        "codex     no     0.169.0  no     codex   (default) not logged in  resume, images",
        "demo      yes                    demo",
        "",
        "! worker_lost: a worker ended",
    ]


def test_provider_reasons_are_complete_on_a_narrow_terminal() -> None:
    reason = "codex is not logged in: run `codex login`, or set CODEX_API_KEY"
    unready = evolve(STATUS.providers[0], reason=reason)
    lines = screen_lines(provider_cards([unready, STATUS.providers[1]]), 40, colour=False)
    assert [line.rstrip() for line in lines] == [
        "codex (default)",
        "  ready    no: codex is not logged in:",
        "           run `codex login`, or set",
        "           CODEX_API_KEY",
        "  version  0.169.0",
        "  login    no",
        "  runner   codex",
        "  can      resume, images",
        "",
        "demo",
        "  ready   yes",
        "  runner  demo",
    ]


@pytest.mark.usefixtures("in_utc")
def test_the_diagnosis_shows_the_likely_issue_and_its_evidence() -> None:
    found = Diagnostics(
        worker_id="dmn/worker-1", worker_alive=True, alive_workers=4, max_concurrency=4,
        queue_counts=QueueCounts(0, 1, 0), queue_position=None,
        likely_issue=Issue("agent_silent", "nothing for 90 s", "look at its processes"),
        active_pid=77,
        process_tree=[ProcessView(77, 1, "codex exec", "sleeping")],
        last_event_at=NOW - timedelta(seconds=90), last_output_at=None, blocked_by_run_id=None,
        pending_request=None, thread_id="th",
        attempts=[AttemptView(1, "w", "codex", NOW, None, None, 77, None)],
        codex_invocation=InvocationView("codex", None, [], ["codex", "exec", "a b"], "/src"),
        invocation=None, stderr_tail="warn \x1b[31mred\n",
    )  # fmt: skip
    run = evolve(RUN, status=RunStatus.RUNNING, finished_at=None)
    assert [*plain_lines(diagnosis(DiagnosisReply(run, found), NOW))] == [
        "agent_silent  nothing for 90 s",
        "look at its processes",
        "",
        "run run_1",
        "  status      running",
        "  session     ses_1",
        "  provider    codex",
        "  worker      dmn/worker-1 (alive)",
        "  workers     4 of 4",
        "  queue       0 queued, 1 running, 0 waiting",
        "  pid         77",
        "  thread      th",
        "  last event  1 min ago  (2026-03-04 09:28:30)",
        "  directory   /src",
        "  command     codex exec 'a b'",
        "",
        "ATTEMPT  PROVIDER  WORKER  PID  STARTED  OUTCOME",
        "1        codex     w       77   now      going on",
        "",
        "PID  STATE     PROCESS",
        " 77  sleeping  codex exec",
        "",
        "END OF STDERR",
        "  warn red",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.25, "250 ms"), (9.96, "10.0 s"), (59.96, "1 min 00 s"), (61, "1 min 01 s"),
     (3599.6, "1 h 00 min"), (7260, "2 h 01 min"), (90_000, "1 d 1 h")],
)  # fmt: skip
def test_a_duration_has_a_short_text(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "now"), (-5, "now"), (5, "5 s ago"), (59.9, "59 s ago"), (60, "1 min ago"), (7199, "1 h ago"),
     (90_000, "1 d ago"), (-120, "in 2 min 00 s")],
)  # fmt: skip
def test_a_time_is_shown_relative_to_now(seconds: float, text: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_the_daemons_process_is_identified_without_the_clock() -> None:
    ours = evolve(STATUS, pid=os.getpid(), process_start_id=process_start_id(os.getpid()))
    assert ours.started_at == NOW  # years from when this process started
    assert process_of(ours).pid == os.getpid()
    for start_id in (None, "another-boot/1", f"{ours.process_start_id}0"):
        with pytest.raises(Failure, match="does not exist on this machine") as raised:
            process_of(evolve(ours, process_start_id=start_id))
        assert raised.value.code == "not_local"


def test_a_message_says_how_many_images_it_has() -> None:
    picture = Image("image/png", 8, "0" * 64)
    pictures = ((), (picture,), (picture, picture))
    _, *rows = plain_lines(message_table([a_message("ses_1", images=one) for one in pictures], NOW))
    assert [row.rpartition("  ")[2] for row in rows] == [
        "hello",
        "[1 image] hello",
        "[2 images] hello",
    ]


def test_a_decision_is_marked_among_messages() -> None:
    plain, decision = (a_message("ses_1", request_id=name) for name in (None, "req_1"))
    _, *rows = plain_lines(message_table([plain, decision], NOW))
    assert ["decision" in row for row in rows] == [False, True]
