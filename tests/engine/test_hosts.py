"""Engines of several hosts on one PostgreSQL database."""

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from attrs import evolve
from loops import ON_ONE_LOOP
from shared_daemons import PATIENCE_S, Daemon, check, daemons, heard, until

from agent_orchestrator import Client, RunStatus
from agent_orchestrator.domain.access import LOCAL, Principal, RunIdentity
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    SessionBusy,
    StoreLocked,
)
from agent_orchestrator.domain.model import Run, Session
from agent_orchestrator.engine import sessions
from agent_orchestrator.operations.sessions import UpdateSession
from agent_orchestrator.testing.scripted import PROVIDER, ScriptedRunner
from agent_orchestrator.testing.stores.samples import a_run, a_session, put

__all__ = ["daemons"]

pytestmark = pytest.mark.anyio


async def send(daemon: Daemon, session: Session, text: str, **more: Any) -> Run:
    sent = await daemon.client.send_message(session.id, text, **more)
    assert sent.run is not None
    return sent.run


async def end_of(daemon: Daemon, run: Run) -> Run:
    return (await daemon.client.wait_run(run.id, timeout_s=PATIENCE_S)).run


async def hosts_of(daemon: Daemon, run: Run) -> list[str | None]:
    """Return the host of each attempt of a run."""
    attempts = await daemon.store.read(lambda view: view.attempts(run.id))
    return [attempt.host for attempt in attempts]


async def test_runs_are_executed_on_the_host_of_their_session(daemons: Any) -> None:
    async with daemons("a", host_name="x", workers=1) as [a], daemons("b", host_name="y") as [b]:
        of_a = [await a.client.create_session() for _ in range(6)]
        of_b = [await b.client.create_session() for _ in range(6)]
        assert {session.host for session in of_a} == {"x"}
        assert {session.host for session in of_b} == {"y"}
        # Each is sent to the daemon of the other host. The first one has fewer workers than runs.
        runs = [(await send(b, session, "say here"), "x") for session in of_a]
        runs += [(await send(a, session, "say here"), "y") for session in of_b]
        for run, host in runs:
            assert (await end_of(a, run)).status is RunStatus.COMPLETED
            assert await hosts_of(b, run) == [host]
        status = await a.client.status()
        assert status.host == "x"
        assert sorted(str(one.host) for one in status.daemons) == ["x", "y"]
        assert [(one.name, one.away_since) for one in status.hosts] == [("x", None), ("y", None)]
        await check(a.client)


async def test_a_child_is_on_the_host_of_its_parent(daemons: Any) -> None:
    async with daemons("a", host_name="x") as [a], daemons("b", host_name="y") as [b]:
        parent = await a.client.create_session()
        spawned = await b.client.spawn("say child", session_id=parent.id)
        assert spawned.session.host == "x"
        assert (await end_of(b, spawned.run)).status is RunStatus.COMPLETED
        assert await hosts_of(b, spawned.run) == ["x"]
        asked = await send(b, parent, "spawn say deep\nwait")
        assert (await end_of(b, asked)).status is RunStatus.COMPLETED
        children = (await b.client.list_sessions(parent_session_id=parent.id)).sessions
        assert [child.host for child in children] == ["x", "x"]


async def test_work_waits_for_a_host_that_is_away_and_delays_no_other(daemons: Any) -> None:
    async with daemons("a", host_name="x", workers=1) as [a]:
        async with daemons("b", host_name="y") as [b]:
            far = await b.client.create_session()
            held = await send(b, far, "hold")
            await heard(a.client, far.id, "holding")
        # It has left: its run went back to the queue, with an earlier place than all that follow.
        await until(lambda: is_(a, held, RunStatus.QUEUED))
        queued = [
            await send(a, far, "say later"),
            *[await send(a, await of_host(a, "y"), "say later") for _ in range(3)],
        ]
        near = await a.client.create_session()
        assert (await end_of(a, await send(a, near, "say near"))).status is RunStatus.COMPLETED
        issue = (await a.client.diagnose_run(queued[1].id)).diagnostics.likely_issue
        [left] = [one for one in (await a.client.status()).hosts if one.name == "y"]
        assert left.away_since is not None
        assert left.waiting_count == 5
        assert issue.code == "host_away"
        assert f"since {left.away_since:%Y-%m-%dT%H:%M:%SZ}" in issue.message
        status = await a.client.status()
        assert "host_away" in [problem.code for problem in status.problems]
        assert status.daemon_health == "ok"
        assert a.runner.prompts == ["say near"]
        async with daemons("b", host_name="y") as [b]:
            await b.client.cancel_run(held.id)
            for run in queued:
                assert (await end_of(a, run)).status is RunStatus.COMPLETED
                assert await hosts_of(a, run) == ["y"]
            assert "host_away" not in [one.code for one in (await a.client.status()).problems]
        await check(a.client)


async def test_the_place_in_the_queue_is_among_the_runs_of_the_same_host(daemons: Any) -> None:
    async with (
        daemons("a", host_name="x", workers=1) as [a],
        daemons("b", host_name="y", workers=1) as [b],
    ):
        held = []
        for daemon in (a, b):
            held.append(await send(daemon, await daemon.client.create_session(), "hold"))
            await heard(a.client, held[-1].session_id, "holding")
        queued = [
            await send(a, await daemon.client.create_session(), "say later")
            for daemon in (b, b, a, a)
        ]
        diagnoses = [(await b.client.diagnose_run(run.id)).diagnostics for run in queued]
        assert [one.queue_position for one in diagnoses] == [1, 2, 1, 2]
        issue = diagnoses[2].likely_issue
        assert issue.code == "queued_no_capacity"
        assert "the run is number 1 in the queue" in issue.message
        for run in held:
            await a.client.cancel_run(run.id)
        for run in queued:
            assert (await end_of(a, run)).status is RunStatus.COMPLETED


async def test_a_queued_run_is_diagnosed_by_the_workers_of_its_own_host(daemons: Any) -> None:
    async with (
        daemons("a", host_name="x", workers=1) as [a],
        daemons("b", host_name="y", workers=2) as [b],
    ):
        held = [await send(b, await b.client.create_session(), "hold") for _ in range(2)]
        for run in held:
            await heard(b.client, run.session_id, "holding")
        free = a_run((await a.client.create_session()).id, provider=PROVIDER)
        await put(a.store, free)  # without a notification, so that no worker starts it
        issue = (await b.client.diagnose_run(free.id)).diagnostics.likely_issue
        assert issue.code == "none", "all busy workers are of the other host"
        for run in held:
            await a.client.cancel_run(run.id)


async def is_(daemon: Daemon, run: Run, status: RunStatus) -> bool:
    return (await daemon.client.get_run(run.id)).status is status


async def of_host(daemon: Daemon, host: str) -> Session:
    """Add a session of another host to the store."""
    session = a_session(host=host)
    await put(daemon.store, session)
    return session


async def test_a_waiting_run_of_another_host_is_answered_steered_and_canceled_from_here(
    daemons: Any,
) -> None:
    async with daemons("a", host_name="x") as [a], daemons("b", host_name="y") as [b]:
        session = await b.client.create_session()
        asked = await send(a, session, "ask May I?\nsteered")
        await until(lambda: has_request(a))
        [request] = (await a.client.requests(status="pending")).requests
        await a.client.resolve_request(request.id, "approve", text="yes")
        await heard(a.client, session.id, "approved yes")
        await heard(a.client, session.id, "listening")
        await a.client.send_message(session.id, "quickly", when_busy="steer")
        assert (await end_of(a, asked)).status is RunStatus.COMPLETED
        held = await send(a, session, "hold")
        await heard(a.client, session.id, "holding")
        diagnostics = (await a.client.diagnose_run(held.id)).diagnostics
        assert diagnostics.worker_alive
        assert diagnostics.likely_issue.code == "none"
        await a.client.cancel_run(held.id)
        assert (await end_of(a, held)).status is RunStatus.CANCELED
        assert a.runner.prompts == []


async def has_request(daemon: Daemon) -> bool:
    return bool((await daemon.client.requests(status="pending")).requests)


async def test_a_lost_run_waits_for_a_daemon_of_its_host(daemons: Any) -> None:
    """Only that one can find out whether the agent still works."""
    async with daemons("a", host_name="x") as [a]:
        session = await of_host(a, "y")
        async with daemons("b", host_name="y"):
            pass
        near = await a.client.create_session()
        lost, own = (
            a_run(one.id, status=RunStatus.RUNNING, worker_id="dmn_gone/worker-1")
            for one in (session, near)
        )
        for run in (lost, own):
            await put(a.store, run)
            await a.client.cancel_run(run.id)
        a.engine.core.notifier.notify(["daemons"])  # it looks again
        # It has looked at both when the later one, which is of its host, has ended.
        assert (await end_of(a, own)).status is RunStatus.CANCELED
        assert (await end_of(a, await send(a, near, "say near"))).status is RunStatus.COMPLETED
        diagnostics = (await a.client.diagnose_run(lost.id)).diagnostics
        assert diagnostics.likely_issue.code == "host_away"
        assert "the cancel of" in diagnostics.likely_issue.message
        problems = [problem.code for problem in (await a.client.status()).problems]
        assert "recovery_pending" not in problems
        assert "host_away" in problems
        assert (await a.client.get_run(lost.id)).status is RunStatus.RUNNING
        async with daemons("b", host_name="y") as [b]:
            assert (await end_of(a, lost)).status is RunStatus.CANCELED
            await check(b.client)


async def test_a_session_moves_between_two_turns_with_its_log_and_queue(
    daemons: Any, tmp_path: Path
) -> None:
    there = str(tmp_path)
    async with daemons("a", host_name="x") as [a], daemons("b", host_name="y") as [b]:
        session = await a.client.create_session()
        first = await send(a, session, "thread t\nwhich")
        assert (await end_of(a, first)).status is RunStatus.COMPLETED
        held = await send(a, session, "hold")
        await heard(a.client, session.id, "holding")
        queued = await send(a, session, "which")
        with pytest.raises(SessionBusy):
            await b.client.update_session(session.id, host="y", cwd=there)
        # A move that is refused, or is wrong, changes nothing.
        for wrong in ({"host": "z", "cwd": there}, {"host": "y"}):
            with pytest.raises(InvalidRequest) as caught:
                await a.client.update_session(session.id, **wrong)
            assert list(caught.value.details["fields"]) == (["host"] if "cwd" in wrong else ["cwd"])
        assert (await a.client.get_session(session.id)).threads == {PROVIDER: "t"}
        await a.client.cancel_run(held.id)
        await end_of(a, queued)
        moved = await a.client.update_session(session.id, host="y", cwd=there)
        assert (moved.host, moved.cwd, moved.threads) == ("y", there, {})
        again = await send(a, session, "which")
        ended = await end_of(a, again)
        assert ended.result is not None
        assert ended.result.text == "none", "the conversation stayed on the other host"
        assert await hosts_of(a, again) == ["y"]
        log = [event async for event in b.client.events(session.id)]
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        [change] = [event.data for event in log if event.event_type == "session.updated"]
        assert change == {
            "cwd": there,
            "previous_cwd": session.cwd,
            "host": "y",
            "previous_host": "x",
            "left_threads": {PROVIDER: "t"},
        }
        await check(a.client)


async def test_queued_runs_of_a_host_that_is_away_move_to_another(
    daemons: Any, tmp_path: Path
) -> None:
    async with daemons("a", host_name="x") as [a]:
        async with daemons("b", host_name="y"):
            pass
        session = await of_host(a, "y")
        queued = [await send(a, session, f"say {number}") for number in range(3)]
        assert await is_(a, queued[0], RunStatus.QUEUED)
        await a.client.update_session(session.id, host="x", cwd=str(tmp_path))
        for run in queued:
            assert (await end_of(a, run)).status is RunStatus.COMPLETED
            assert await hosts_of(a, run) == ["x"]
        assert a.runner.prompts == ["say 0", "say 1", "say 2"]


@ON_ONE_LOOP
async def test_a_directory_that_was_checked_on_one_host_is_not_set_on_another(
    daemons: Any, tmp_path: Path
) -> None:
    async with daemons("a", host_name="x") as [a], daemons("b", host_name="y"):
        session = await a.client.create_session()
        command = UpdateSession(session_id=session.id, cwd=str(tmp_path))
        change = await sessions.update(a.engine.core, LOCAL, command)
        await a.client.update_session(session.id, host="y", cwd="/there")
        with pytest.raises(SessionBusy, match="has moved to the host y"):
            await a.store.transact(change)
        assert (await a.client.get_session(session.id)).cwd == "/there"


@ON_ONE_LOOP
async def test_an_agent_moves_no_session_to_another_host(daemons: Any) -> None:
    async with daemons("a", host_name="x") as [a], daemons("b", host_name="y"):
        session = await a.client.create_session()
        run = await send(a, session, "hold")
        await heard(a.client, session.id, "holding")
        child = (await a.client.spawn("say child", run_id=run.id)).session
        agent = agent_of(a, run)
        with pytest.raises(Forbidden):
            await agent.update_session(child.id, host="y", cwd="/")
        assert (await a.client.get_session(child.id)).host == "x"


def agent_of(daemon: Daemon, run: Run) -> Client:
    """Return a client with the rights of a run's agent."""
    identity = RunIdentity(run.id, 1, run.session_id)
    return Client(daemon.engine.acting_as(Principal(run.id, run=identity)))


@ON_ONE_LOOP
async def test_an_agent_has_children_only_on_hosts_that_let_them_in(
    daemons: Any, tmp_path: Path
) -> None:
    """They work in the directory that their host gives them, with the sandbox of their parent."""
    open_host = {"host_name": "y", "host_labels": ("gpu",), "spawn_directory": str(tmp_path)}
    async with (
        daemons("a", host_name="x", host_labels=("eu",)) as [a],
        daemons("b", **open_host) as [b],
        daemons("c", host_name="z", host_labels=("gpu", "arm")) as [c],
    ):
        shown = {one.host: one.spawn_directory for one in (await a.client.status()).daemons}
        assert shown == {"x": None, "y": str(tmp_path), "z": None}
        session = await a.client.create_session()
        run = await send(a, session, "hold")
        await heard(a.client, session.id, "holding")
        agent = agent_of(a, run)
        for choice in ({"host": "z"}, {"host": "w"}, {"labels": ["arm"]}):
            with pytest.raises(Conflict, match="lets agents of other hosts in has"):
                await agent.spawn("say no", run_id=run.id, **choice)
        with pytest.raises(Forbidden, match="leave out `cwd`"):
            await agent.spawn("say no", run_id=run.id, host="y", cwd=str(tmp_path / "there"))
        for choice in ({"host": "y"}, {"labels": ["gpu"]}, {"preferred_labels": ["gpu"]}):
            spawned = await agent.spawn("say child", run_id=run.id, **choice)
            assert (spawned.session.host, spawned.session.cwd) == ("y", str(tmp_path))
            assert (await end_of(a, spawned.run)).status is RunStatus.COMPLETED
            assert await hosts_of(a, spawned.run) == ["y"]
        for choice in ({"host": "x"}, {"labels": ["eu"]}):
            spawned = await agent.spawn("say child", run_id=run.id, **choice)
            assert (spawned.session.host, spawned.session.cwd) == ("x", session.cwd)
        # Two daemons of a host that say different things let nobody in.
        async with daemons("d", **open_host | {"spawn_directory": "/"}):
            with pytest.raises(Conflict, match="lets agents of other hosts in"):
                await agent.spawn("say no", run_id=run.id, host="y")
        assert b.runner.prompts == ["say child"] * 3
        assert c.runner.prompts == []
        await a.client.cancel_run(run.id)


@ON_ONE_LOOP
async def test_an_agent_has_children_only_by_the_daemon_that_executes_it(daemons: Any) -> None:
    """Another one may have other settings for its provider, or no such provider, and so not know its sandbox."""
    async with (
        daemons("a", host_name="x") as [a],
        daemons("b", host_name="x", providers=("other",)) as [b],
    ):
        session = await a.client.create_session()
        run = await send(a, session, "hold")
        await heard(a.client, session.id, "holding")
        for provider in (PROVIDER, "other"):
            with pytest.raises(Forbidden, match="AGENTCTL_URL"):
                await agent_of(b, run).spawn("say no", run_id=run.id, provider=provider)
        spawned = await agent_of(a, run).spawn("say child", run_id=run.id)
        assert (await end_of(b, spawned.run)).status is RunStatus.COMPLETED
        by_a_person = await b.client.spawn("say child", run_id=run.id)
        assert (await end_of(b, by_a_person.run)).status is RunStatus.COMPLETED
        await a.client.cancel_run(run.id)


class Confining(ScriptedRunner):
    @property
    def capabilities(self) -> Capabilities:
        return evolve(super().capabilities, confine=True, sandbox="workspace-write")


@pytest.mark.parametrize(
    ("own", "expected"),
    [(None, "workspace-write"), ("read-only", "read-only"), ("danger-full-access",) * 2],
)
@ON_ONE_LOOP
async def test_the_sandbox_of_an_agent_goes_along_to_another_host(
    daemons: Any, tmp_path: Path, own: Any, expected: str
) -> None:
    """What the provider of the same name there has by default does not count."""
    async with (
        daemons("a", host_name="x") as [a],
        daemons("b", host_name="y", spawn_directory=str(tmp_path)) as [b],
    ):
        providers = a.engine.core.config.providers
        providers[PROVIDER] = evolve(providers[PROVIDER], runner=Confining())
        session = await a.client.create_session(sandbox=own)
        run = await send(a, session, "hold")
        await heard(a.client, session.id, "holding")
        spawned = await agent_of(a, run).spawn("say child", run_id=run.id, host="y")
        assert spawned.session.sandbox == expected
        # The provider there has no sandbox: what cannot be enforced does not start.
        ended = await end_of(b, spawned.run)
        assert ended.error is not None
        assert ended.error.code == "invalid_config"
        await a.client.cancel_run(run.id)


async def test_every_daemon_takes_messages_for_a_provider_that_only_another_has(
    daemons: Any,
) -> None:
    async with daemons("a", host_name="x", providers=("first",)) as [a]:
        async with daemons("b", host_name="y", providers=("second", "third")) as [b]:
            session = await b.client.create_session(provider="second")
            for choice, provider in (({}, "second"), ({"provider": "third"}, "third")):
                done = await end_of(a, await send(a, session, "say there", **choice))
                assert (done.status, done.provider) == (RunStatus.COMPLETED, provider)
            placed = await a.client.create_session(provider="third", host="y", cwd="/")
            child = await a.client.spawn("say child", session_id=placed.id, provider="second")
            assert (await end_of(a, child.run)).status is RunStatus.COMPLETED
            assert b.runner.prompts == ["say there"] * 2 + ["say child"]
            with pytest.raises(InvalidRequest, match="unknown provider 'fourth'"):
                await a.client.send_message(session.id, "no", provider="fourth")
            # A host without the provider: nobody takes the run, and the reason is shown.
            stuck = await send(a, session, "say stuck", provider="first")
            issue = (await b.client.diagnose_run(stuck.id)).diagnostics.likely_issue
            assert issue.code == "provider_unavailable"
            assert "no daemon has the provider first" in issue.message
            issue = (await a.client.diagnose_run(stuck.id)).diagnostics.likely_issue
            assert "no daemon of the run's host has the provider first" in issue.message
            await a.client.cancel_run(stuck.id)
        # The session's own provider is known from the session, also while its host is away.
        later = await send(a, session, "say later")
        issue = (await a.client.diagnose_run(later.id)).diagnostics.likely_issue
        assert issue.code == "host_away"
        with pytest.raises(InvalidRequest, match="unknown provider 'third'"):
            await a.client.send_message(session.id, "no", provider="third")
        async with daemons("b", host_name="y", providers=("second",)) as [b]:
            assert (await end_of(a, later)).status is RunStatus.COMPLETED
            await check(a.client)


async def test_a_session_and_a_child_are_placed_by_host_and_labels(
    daemons: Any, tmp_path: Path
) -> None:
    there = str(tmp_path)
    async with (
        daemons("a", host_name="x", host_labels=("eu",)) as [a],
        daemons("b", host_name="y", host_labels=("eu", "gpu"), workers=1) as [b],
        daemons("c", host_name="z", host_labels=("gpu",)) as [c],
    ):
        placed = {}
        for name, choice in {
            "named": {"host": "y"},
            "hard": {"labels": ["eu", "gpu"]},
            "own if it fits": {"labels": ["eu"]},
            "most free": {"labels": ["gpu"]},
            "preferred": {"labels": ["eu"], "preferred_labels": ["gpu", "none"]},
        }.items():
            placed[name] = await a.client.create_session(cwd=there, **choice)
        assert {name: session.host for name, session in placed.items()} == {
            "named": "y",
            "hard": "y",
            "own if it fits": "x",
            "most free": "z",
            "preferred": "y",
        }
        run = await send(a, placed["hard"], "hold")
        await heard(a.client, run.session_id, "holding")
        assert await hosts_of(a, run) == ["y"]
        parent = await c.client.create_session()
        spawned = await a.client.spawn("say child", session_id=parent.id, host="x", cwd=there)
        assert (await end_of(c, spawned.run)).status is RunStatus.COMPLETED
        assert await hosts_of(c, spawned.run) == ["x"]
        spawned = await b.client.spawn(
            "say child", session_id=parent.id, labels=["gpu"], preferred_labels=["eu"], cwd=there
        )
        assert spawned.session.host == "y"
        with pytest.raises(Conflict, match="no host with scripted that is there has the labels"):
            await a.client.create_session(cwd=there, labels=["gpu", "arm"])
        for wrong, field in (({"host": "w", "cwd": there}, "host"), ({"host": "y"}, "cwd")):
            with pytest.raises(InvalidRequest) as caught:
                await a.client.create_session(**wrong)
            assert list(caught.value.details["fields"]) == [field]
        with pytest.raises(InvalidRequest):
            await a.client.create_session(labels=["eu"])
        await a.client.cancel_run(run.id)


async def test_nothing_is_placed_on_a_daemon_that_drains_or_is_full(
    daemons: Any, tmp_path: Path
) -> None:
    there = str(tmp_path)
    async with (
        daemons("a", host_name="x") as [a],
        daemons("b", host_name="y", host_labels=("gpu",), workers=1) as [b],
        daemons("c", host_name="z", host_labels=("gpu",), workers=1) as [c],
    ):
        held = await send(a, await b.client.create_session(), "hold")
        await heard(a.client, held.session_id, "holding")
        assert (await a.client.create_session(cwd=there, labels=["gpu"])).host == "z"
        async with anyio.create_task_group() as tasks:
            await send(a, await c.client.create_session(), "hold")
            tasks.start_soon(c.engine.drain, 60)
            await until(lambda: is_draining(a, c.id))
            assert (await a.client.create_session(cwd=there, labels=["gpu"])).host == "y"
            tasks.cancel_scope.cancel()
        await a.client.cancel_run(held.id)


async def is_draining(daemon: Daemon, daemon_id: str) -> bool:
    shown = (await daemon.client.status()).daemons
    return any(one.draining for one in shown if one.id == daemon_id)


async def test_a_missing_directory_of_another_host_is_found_there(daemons: Any) -> None:
    async with daemons("a", host_name="x") as [a], daemons("b", host_name="y"):
        session = await a.client.create_session(host="y", cwd="/no/such/directory")
        ended = await end_of(a, await send(a, session, "say no"))
        assert ended.error is not None
        assert ended.error.code == "invalid_config"
        issue = (await a.client.diagnose_run(ended.id)).diagnostics.likely_issue
        assert issue.code == "cwd_missing"


@ON_ONE_LOOP
async def test_sessions_of_an_earlier_version_get_the_host_of_the_first_daemon(
    daemons: Any,
) -> None:
    async with daemons("a", host_name="x") as [a]:
        earlier, copied, far = (a_session(host=host) for host in (None, "local", "y"))
        queued = a_run(earlier.id, provider=PROVIDER)
        await put(a.store, earlier, copied, far, queued)
        await a.client.cancel_run(queued.id)
    async with daemons("a", host_name="x") as [a]:
        hosts = [(await a.client.get_session(one.id)).host for one in (earlier, copied, far)]
        assert hosts == ["x", "x", "y"]
        for session in (earlier, copied):
            run = await send(a, session, "say here")
            assert (await end_of(a, run)).status is RunStatus.COMPLETED


@ON_ONE_LOOP
async def test_a_machine_cannot_have_the_name_of_another_one(daemons: Any, postgres: Any) -> None:
    """Neither would see the other's agents, and take that for their end."""
    async with daemons("a", host_name="x") as [a]:
        database = a.store.location.rpartition("/")[2]
    expires = "clock_timestamp() + interval"
    await anyio.to_thread.run_sync(
        postgres.run,
        "INSERT INTO agent_orchestrator.daemons"
        " (id, host, machine, pid, version, capacity, providers, serves, expires_at)"
        f" VALUES ('dmn_far', 'far', 'boot/1', 7, '1', 1, '[]', 'x', {expires} '1 hour')",
        database,
    )

    async def extend() -> None:
        sql = (
            f"UPDATE agent_orchestrator.daemons SET expires_at = {expires} '2 hours' WHERE pid = 7"
        )
        while True:  # a busy machine may look for the first time after the first of them
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(postgres.run, sql, database)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(extend)
        with anyio.fail_after(PATIENCE_S), pytest.raises(StoreLocked, match="process 7 on far"):
            async with daemons("b", host_name="x"):
                pass
        tasks.cancel_scope.cancel()
    async with daemons("b", host_name="y") as [b]:
        assert {one.host for one in (await b.client.status()).daemons} == {"x", "y"}


@ON_ONE_LOOP
async def test_a_daemon_starts_no_run_before_it_is_let_in_again(
    daemons: Any, postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Another machine got the name of its host while it was cut off."""
    async with daemons("a", host_name="x") as [a], daemons("b", host_name="y") as [b]:
        database = a.store.location.rpartition("/")[2]
        session = await a.client.create_session()
        former = a.id
        table, far = "agent_orchestrator.daemons", "id = 'dmn_far'"
        expires = "clock_timestamp() + interval"

        async def run_sql(sql: str) -> None:
            await anyio.to_thread.run_sync(postgres.run, sql, database)

        async def extend() -> None:
            while True:
                await anyio.sleep(0.5)
                await run_sql(f"UPDATE {table} SET expires_at = {expires} '2 hours' WHERE {far}")

        await run_sql(
            f"UPDATE {table} SET ended_at = now() WHERE id = '{former}'; INSERT INTO {table}"
            " (id, host, machine, pid, version, capacity, providers, serves, expires_at)"
            f" VALUES ('dmn_far', 'far', 'boot/1', 7, '1', 1, '[]', 'x', {expires} '1 hour')"
        )
        queued = await send(b, session, "say here")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(extend)
            await until(lambda: is_refused(caplog))
            tasks.cancel_scope.cancel()
        assert await is_(b, queued, RunStatus.QUEUED)
        assert a.runner.prompts == []
        await run_sql(f"DELETE FROM {table} WHERE {far}")
        assert (await end_of(b, queued)).status is RunStatus.COMPLETED
        assert a.runner.prompts == ["say here"]
        assert a.id != former
        await check(b.client)


async def is_refused(caplog: pytest.LogCaptureFixture) -> bool:
    """Return whether it was refused several times. Meanwhile its workers look for runs again."""
    found = ["cannot begin anew" in text and "7 on far" in text for text in caplog.messages]
    return sum(found) >= 3
