"""That an experiment's failure would be seen. The experiments themselves are in ``fixed_set.py``."""

import json
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import anyio
import psutil
import pytest
from tests.chaos import __main__ as chaos
from tests.chaos import daemons, engines, real_agents, size_calls
from tests.chaos.outcome import Effort, Outcome, percentile, table
from tests.chaos.traffic import Ack, Traffic

from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.operations import OPERATIONS


def test_an_experiment_that_is_cut_short_leaves_nothing_running(tmp_path):
    program = """
import pathlib, subprocess, sys, time
sleeper = subprocess.Popen(["sleep", "600"])
made = pathlib.Path(sys.argv[1])
made.with_suffix(".new").write_text(f"{sleeper.pid}")
made.with_suffix(".new").rename(made)
time.sleep(600)
"""
    made = tmp_path / "pid"

    async def cut_short():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engines._run, ["-c", program, str(made)])
            with anyio.fail_after(60):
                while not made.exists():
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    anyio.run(cut_short)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(made.read_text())).wait(60)


def failed(kind):
    outcome = Outcome("thing", seed=7, tries=3)
    outcome.fault(kind, "it went wrong", 2)
    return outcome


@pytest.mark.parametrize("kind", ["lost", "doubled", "gaps", "orphans", "broken"])
def test_a_failure_is_exit_status_1_and_names_its_seed(monkeypatch, capsys, kind):
    async def experiment(effort, directory):
        return failed(kind)

    monkeypatch.setattr(chaos, "EXPERIMENTS", {"thing": experiment})
    assert chaos.main(["thing", "--seed", "7"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert f"{kind}: it went wrong [--seed 7 thing, try 3]" in printed


def test_a_control_experiment_that_loses_nothing_is_a_failure():
    outcome = Outcome("control", seed=7, expects_loss=True)
    assert not outcome.passed
    outcome.fault("lost", "as it must")
    assert outcome.passed


def test_the_same_seed_draws_the_same_random_values():
    first, second = Effort(5).chance("a", 1), Effort(5).chance("a", 1)
    assert [first.random() for _ in range(9)] == [second.random() for _ in range(9)]
    assert Effort(6).chance("a", 1).random() != Effort(5).chance("a", 1).random()


def test_the_table_shows_recovery_times_failures_and_skips():
    outcomes = [Outcome("one", 1, tries=2, recoveries=[0.5, 1.25]), failed("gaps")]
    outcomes.append(Outcome("two", 1, skipped="no strace"))
    lines = table(outcomes).splitlines()
    assert lines[2].split("|")[-4:-1] == [" 0     ", " 1.25 s         ", " ok                 "]
    assert "FAILED" in lines[3]
    assert "skipped: no strace" in lines[4]


def test_each_mutant_changes_the_current_code_and_names_a_test_that_detects_it():
    for mutant in engines.MUTANTS:
        assert (engines.SOURCE / mutant.path).read_text().count(mutant.old) == 1, mutant.name
    files = sorted({mutant.tests[0] for mutant in engines.MUTANTS})
    argv = [sys.executable, "-m", "pytest", *files, "--collect-only", "-p", "no:randomly"]
    done = subprocess.run(
        argv, cwd=engines.ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    ids = done.stdout.splitlines()
    for mutant in engines.MUTANTS:
        file, *choice = mutant.tests
        words = choice[1].split(" or ") if choice else [""]
        assert any(one.startswith(file) and word in one for one in ids for word in words), (
            mutant.name
        )


def test_the_sweep_of_sizes_has_a_case_or_a_reason_for_each_operation():
    swept = [case.operation for case in size_calls.CALLS]
    assert {*swept, *size_calls.BESIDE} == {operation.name for operation in OPERATIONS}
    assert not {*swept} & size_calls.BESIDE.keys()


def test_a_percentile_is_the_nearest_rank():
    assert percentile(range(1, 21), 0.95) == 19
    assert percentile([3], 0.95) == 3
    assert percentile(range(1, 101), 0.95) == 95


class Seen:
    """A request to the model of Claude Code, with what the user's side has sent."""

    def __init__(self, *texts):
        self.texts = texts


@pytest.mark.parametrize(
    ("requests", "faults"),
    [
        ([Seen("say a"), Seen("say a", "say b")], []),
        ([Seen("say a"), Seen("say a")], ["lost"]),
        ([Seen("say a", "say b"), Seen("say a", "say b", "say b")], ["doubled"]),
    ],
)
def test_a_message_that_an_agent_was_not_given_or_given_twice_is_a_failure(requests, faults):
    agent = real_agents.Scripted(
        next(one for one in real_agents.REAL_AGENTS if one.name == "claude"),
        SimpleNamespace(requests=requests),
    )
    outcome = Outcome("thing", seed=7)
    traffic = Traffic("", Effort(1), Effort(1).chance(), outcome)
    for key in ("a", "b"):
        traffic.acks[key] = Ack(key, f"say {key}", f"message {key}", "session", f"run {key}")

    class Runs:
        async def get_run(self, _run_id):
            return SimpleNamespace(provider="claude", status=RunStatus.COMPLETED, attempt=2)

    anyio.run(real_agents.check_conversations, Runs(), [agent], traffic, outcome)
    assert [problem.partition(":")[0] for problem in outcome.problems] == faults


def test_a_run_whose_agent_worked_on_another_host_is_a_failure(tmp_path):
    outcome, members = Outcome("thing", seed=7), []
    for host, run in (("x", "run_1"), ("y", "run_2")):
        trace = tmp_path / host
        trace.write_text(json.dumps({"what": "asked", "mark": f"{run}.1"}) + "\n")
        members.append(daemons.Member(SimpleNamespace(trace=trace), host))
    records = SimpleNamespace(
        sessions=[SimpleNamespace(id="ses", host="x")],
        runs=[SimpleNamespace(id=run, session_id="ses") for run in ("run_1", "run_2")],
    )
    daemons.judge_hosts(members[:1], records, outcome)
    assert outcome.problems == []
    daemons.judge_hosts(members, records, outcome)
    assert len(outcome.problems) == 1
    assert "y has executed runs of another host: {'run_2'}" in outcome.problems[0]


def test_the_document_has_a_place_for_the_table():
    page = chaos.PAGE.read_text()
    assert chaos.with_table(page, "the table", Effort(1), 60) != page


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        chaos.main(["kills", "nope"])
    assert refused.value.code == 2
    assert "'nope'" in capsys.readouterr().err
