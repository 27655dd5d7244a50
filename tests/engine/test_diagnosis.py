"""Diagnosis of a run, for each way in which an agent or the store can fail."""

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, Outcome, RunContext, RunStatus, open_embedded
from agent_orchestrator.domain.errors import AgentFailed, Unavailable
from agent_orchestrator.domain.model import FAILURE_CODES, Run
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.hosts import this_host
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.operations.runs import Diagnostics, Issue
from agent_orchestrator.runners.command import CommandRunner
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0

AGENTS = Path(__file__).parents[1] / "runners" / "agents.py"


@asynccontextmanager
async def playing(
    tmp_path: Path, scene: Sequence[str], *, stop_grace_s: float = 0.2, **limits: Any
) -> AsyncIterator[tuple[Client, Run]]:
    """Run one of the misbehaving agents as a provider."""
    argv = (sys.executable, "-S", str(AGENTS), *scene)
    runner = CommandRunner("agent", argv, stop_grace_s=stop_grace_s)
    providers = {"agent": ProviderConfig(runner, "command", **limits)}
    async with open_embedded(":memory:", providers=providers, cwd=str(tmp_path)) as client:
        with anyio.fail_after(TIMEOUT_S):
            yield client, await sent(client)


async def sent(client: Client, text: str = "go", **session: Any) -> Run:
    made = await client.create_session(**session)
    reply = await client.send_message(made.id, text)
    assert reply.run is not None
    return reply.run


async def diagnosed(client: Client, run: Run) -> Diagnostics:
    return (await client.diagnose_run(run.id)).diagnostics


async def found(client: Client, run: Run, code: str) -> Issue:
    """Wait until diagnosis has this code."""
    with anyio.fail_after(TIMEOUT_S):
        while (issue := (await diagnosed(client, run)).likely_issue).code != code:
            await anyio.sleep(0.005)
    return issue


async def end_of(client: Client, run: Run) -> Run:
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


# --- agents that end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "words", "exit_code"),
    [
        (["exit", "3"], "exited with 3", 3),
        (["die", "11"], "killed by SIGSEGV", -11),
        (["complain"], "no such model", 3),
        (["close-stdout"], "exited with 4", 4),
    ],
)
async def test_diagnosis_of_a_crash_has_the_exit_status_and_stderr(
    tmp_path: Path, scene: list[str], words: str, exit_code: int
) -> None:
    async with playing(tmp_path, scene) as (client, made):
        run = await end_of(client, made)
        diagnosis = await diagnosed(client, run)
    assert (run.status, run.exit_code) == (RunStatus.FAILED, exit_code)
    assert diagnosis.likely_issue.code == "crashed"
    assert words in diagnosis.likely_issue.message
    assert diagnosis.invocation is not None
    if scene == ["complain"]:
        assert "warming up" in diagnosis.stderr_tail
    # It leads to standard error only if there is some.
    assert ("the end of standard error" in diagnosis.likely_issue.hint) == bool(
        diagnosis.stderr_tail
    )


@ON_ONE_LOOP
@pytest.mark.parametrize(
    "scene",
    [
        ["invalid-utf8"],
        ["nul"],
        ["no-newline"],
        ["big-line", "50000000"],
        ["tiny-lines", "2000"],
        ["flood-stderr", "20000000"],
        ["holder"],
        ["escaped-dead"],
        ["detached"],
        ["deaf"],
    ],
    ids=lambda scene: str(scene[0]),
)
async def test_diagnosis_of_a_healthy_run_has_the_code_none(
    tmp_path: Path, scene: list[str]
) -> None:
    async with playing(tmp_path, scene) as (client, made):
        run = await end_of(client, made)
        diagnosis = await diagnosed(client, run)
    assert run.status is RunStatus.COMPLETED, run.error
    assert diagnosis.likely_issue.code == "none"
    assert "completed" in diagnosis.likely_issue.message
    assert (diagnosis.active_pid, diagnosis.process_tree) == (None, ())


async def test_diagnosis_is_agent_exited_while_another_process_holds_its_stdout(
    tmp_path: Path,
) -> None:
    async with playing(tmp_path, ["holder"]) as (client, run):
        issue = await found(client, run, "agent_exited")
        pid = (await diagnosed(client, run)).attempts[-1].pid
        assert f"process {pid} is gone" in issue.message
        assert (await end_of(client, run)).status is RunStatus.COMPLETED


# --- agents that do not end -----------------------------------------------------------------------


async def test_diagnosis_is_agent_silent_before_and_after_the_timeout(tmp_path: Path) -> None:
    async with playing(tmp_path, ["mute"], silence_timeout_s=0.6) as (client, made):
        run = await end_of(client, made)
        diagnosis = await diagnosed(client, run)
        page = await client.list_events(run.session_id)
    assert (diagnosis.likely_issue.code, "silence_timeout_s" in diagnosis.likely_issue.message) == (
        "agent_silent",
        True,
    )
    warned = [event.data["code"] for event in page.events if event.event_type == "run.error"]
    assert set(warned) == {"agent_silent"}  # once for each time it fell silent


async def test_diagnosis_of_a_run_timeout_names_the_setting(tmp_path: Path) -> None:
    async with playing(tmp_path, ["last"], run_timeout_s=0.5) as (client, made):
        run = await end_of(client, made)
        issue = (await diagnosed(client, run)).likely_issue
    assert (issue.code, "run_timeout_s" in issue.message) == ("unknown", True)


async def test_diagnosis_of_a_running_agent_lists_its_processes(tmp_path: Path) -> None:
    async with playing(tmp_path, ["last"]) as (client, run):
        while len((diagnosis := await diagnosed(client, run)).process_tree) < 2:
            await anyio.sleep(0.01)
        assert diagnosis.likely_issue.code == "none"
        assert diagnosis.worker_alive
        assert diagnosis.active_pid == diagnosis.attempts[-1].pid == diagnosis.process_tree[0].pid
        await client.cancel_run(run.id)
        await end_of(client, run)
        assert (await diagnosed(client, run)).likely_issue.code == "canceled"


async def test_diagnosis_is_canceled_while_the_agent_ignores_the_cancel(tmp_path: Path) -> None:
    async with playing(tmp_path, ["stubborn"], stop_grace_s=3.0) as (client, run):
        while not (await diagnosed(client, run)).last_output_at:
            await anyio.sleep(0.01)
        await client.cancel_run(run.id)
        reply = await client.diagnose_run(run.id)
        assert reply.run.status is RunStatus.RUNNING
        assert reply.diagnostics.likely_issue.code == "canceled"
        assert "is being stopped" in reply.diagnostics.likely_issue.message
        assert (await end_of(client, run)).status is RunStatus.CANCELED
        issue = (await diagnosed(client, run)).likely_issue
        asked_at = reply.run.cancel_requested_at
    assert asked_at is not None
    for message in (reply.diagnostics.likely_issue.message, issue.message):
        assert f"at {asked_at:%Y-%m-%dT%H:%M:%SZ}" in message


# --- what agents and runners say ------------------------------------------------------------------


NAMED = {
    "auth_failed": "auth_failed",
    "rate_limited": "rate_limited",
    "quota_exhausted": "quota_exhausted",
    "provider_unreachable": "provider_unavailable",
    "provider_unavailable": "provider_unavailable",
    "invalid_config": "invalid_config",
    "thread_missing": "thread_missing",
    "agent_crashed": "crashed",
    "worker_lost": "worker_lost",
}


@pytest.mark.parametrize("code", FAILURE_CODES)
async def test_diagnosis_of_a_failure_has_its_code_and_message(code: str) -> None:
    async def fail(context: RunContext) -> Outcome:
        raise AgentFailed(code, "these very words")

    runner = FunctionRunner("agent", fail)
    async with open_embedded(":memory:", runners=[runner]) as client:
        run = await end_of(client, await sent(client))
        issue = (await diagnosed(client, run)).likely_issue
    assert issue.code == NAMED.get(code, "unknown")
    assert issue.message == f"{code}: these very words"
    assert issue.hint


async def test_diagnosis_names_a_program_that_is_not_installed(tmp_path: Path) -> None:
    runner = CommandRunner("agent", ("no-such-program",))
    providers = {"agent": ProviderConfig(runner, "command")}
    async with open_embedded(":memory:", providers=providers, cwd=str(tmp_path)) as client:
        run = await end_of(client, await sent(client))
        issue = (await diagnosed(client, run)).likely_issue
    assert issue.code == "provider_unavailable"
    assert "no-such-program" in issue.message


# --- the queue ------------------------------------------------------------------------------------


async def test_diagnosis_of_a_queued_run_says_what_it_waits_for() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()], max_concurrency=1) as client:
        first = await sent(client, "hold")
        await found(client, first, "none")
        behind = await client.send_message(first.session_id, "say after")
        assert behind.run is not None
        issue = (await diagnosed(client, behind.run)).likely_issue
        assert (issue.code, first.id in issue.message) == ("queued_behind_run", True)
        other = await sent(client, "say aside")
        with anyio.fail_after(TIMEOUT_S):
            while (await client.get_run(first.id)).status is RunStatus.QUEUED:
                await anyio.sleep(0.001)
        issue = (await diagnosed(client, other)).likely_issue
        assert (issue.code, "number" in issue.message) == ("queued_no_capacity", True)


async def test_blocked_runs_do_not_count_as_busy_workers() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()], max_concurrency=2) as client:
        for _ in range(3):
            await found(client, await sent(client, "ask May I?"), "waiting_on_request")
        busy = [await sent(client, "hold") for _ in range(2)]
        for run in busy:
            with anyio.fail_after(TIMEOUT_S):
                while (await client.get_run(run.id)).status is not RunStatus.RUNNING:
                    await anyio.sleep(0.001)
        issue = await found(client, await sent(client), "queued_no_capacity")
        assert issue.message.startswith("all 2 workers are busy")


async def test_diagnosis_is_no_workers_during_a_drain(tmp_path: Path) -> None:
    release = anyio.Event()

    async def hold(context: RunContext) -> Outcome:
        await release.wait()
        return Outcome("done")

    config = EngineConfig(
        providers={"agent": ProviderConfig(FunctionRunner("agent", hold), "function")},
        routing=Routing("agent"),
        cwd=str(tmp_path),
        max_concurrency=1,
        host=this_host(),
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        first = await sent(client)
        with anyio.fail_after(TIMEOUT_S):
            while (await client.get_run(first.id)).status is not RunStatus.RUNNING:
                await anyio.sleep(0.001)
            queued = await sent(client)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.drain, 20)
                issue = await found(client, queued, "no_workers")
                release.set()
    assert "start the daemon" in issue.hint


async def test_diagnosis_names_the_open_request() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        run = await sent(client, "ask May I?")
        issue = await found(client, run, "waiting_on_request")
        diagnosis = await diagnosed(client, run)
    assert diagnosis.pending_request is not None
    assert diagnosis.pending_request.id in issue.message


# --- the store ------------------------------------------------------------------------------------


class Failing(MemoryStore):
    """A store that refuses writes while ``problem`` is set."""

    problem: Problem | None = None

    async def transact(self, change: Callable[[Any], Any], *, reserve: bool = False) -> Any:
        if self.problem is not None:
            raise Unavailable(self.problem.message, {"problem": self.problem.code})
        return await super().transact(change, reserve=reserve)

    async def problems(self) -> Sequence[Problem]:
        return () if self.problem is None else (self.problem,)


FAULTS = (
    "disk_full",
    "disk_error",
    "database_read_only",
    "database_locked",
    "database_damaged",
    "commits_lost",
)


@pytest.mark.parametrize("fault", FAULTS)
async def test_diagnosis_names_the_fault_of_a_store_that_refuses_writes(
    tmp_path: Path, fault: str
) -> None:
    store = Failing()
    release = tmp_path / "release"
    code = (
        "import os, time; print('up', flush=True)\n"
        f"while not os.path.exists({str(release)!r}): time.sleep(0.01)"
    )
    runner = CommandRunner("agent", (sys.executable, "-S", "-c", code))
    providers = {"agent": ProviderConfig(runner, "command")}
    async with open_embedded(
        store, providers=providers, cwd=str(tmp_path), max_concurrency=1
    ) as client:
        with anyio.fail_after(TIMEOUT_S):
            run, queued = await sent(client), await sent(client)
            while not (await diagnosed(client, run)).last_output_at:
                await anyio.sleep(0.01)
            store.problem = Problem(fault, "the words of the store")
            # A running agent is not affected, nor is a run that waits for its worker.
            assert (await diagnosed(client, run)).likely_issue.code == "none"
            assert (await diagnosed(client, queued)).likely_issue.code == "queued_no_capacity"
            release.touch()
            issue = await found(client, run, "unknown")
            assert f"{fault}: the words of the store" in issue.message
            store.problem = None
            assert (await end_of(client, run)).status is RunStatus.COMPLETED
            assert (await end_of(client, queued)).status is RunStatus.COMPLETED
