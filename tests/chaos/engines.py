"""The engine alone: simulated, compared with a model, and with faults put into its code."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
from attrs import frozen
from tests.chaos.changed import NotThere, changed
from tests.chaos.daemon import ROOT, SOURCE
from tests.chaos.outcome import Effort, Outcome
from tests.support.postgres import programs

_COUNT: Final = re.compile(r"(\d+) worlds, (\d+) with faults")


async def _run(
    argv: Sequence[str], source: Path = SOURCE, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run Python on a source; return its status and what it said. Nothing of it outlives the call."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("AGENT", "PYTHON"))}
    async with await anyio.open_process(
        [sys.executable, *argv],
        cwd=ROOT,
        env={**environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = b"".join([chunk async for chunk in process.stdout])
            status = await process.wait()
        finally:
            # Also what a test that was cut short has started.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return status, said.decode("utf-8", "replace")


async def simulation(effort: Effort, directory: Path) -> Outcome:
    """One engine after the other, and several at once, in simulated worlds: lost or stopped at any await."""
    outcome = Outcome("simulation", effort.seed)
    for program, full in (("simulation", 10_000), ("fleets", 5_000)):
        seeds = effort.tries(full, 10)
        argv = [f"tests/engine/{program}.py", "--start", str(effort.seed), "--seeds", str(seeds)]
        status, said = await _run(argv)
        told = _COUNT.search(said)
        done = int(told[1]) if told else 0
        outcome.tries += done
        if status != 0 or done != seeds:
            outcome.fault("broken", f"{' '.join(argv)}: {said[-1500:]}")
    return outcome


async def model(effort: Effort, directory: Path) -> Outcome:
    """Sessions, runs, requests and keys, as a model has them and as memory and SQLite do."""
    outcome = Outcome("model", effort.seed)
    outcome.tries = effort.tries(1000, 20)
    argv = ["-m", "pytest", "tests/engine/test_model.py", "-q", "--timeout", "3600"]
    argv += [f"--hypothesis-seed={effort.seed}", "-p", "no:randomly"]
    env = {"MODEL_EXAMPLES": str(outcome.tries)}
    status, said = await _run(argv, SOURCE, env)
    if status != 0:
        outcome.fault("broken", said[-3000:])
    return outcome


@frozen
class Mutant:
    """A fault put into the code, and the tests of which one must fail.

    :param tests: words for pytest.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    needs_postgres: bool = False


_ENGINE: Final = "agent_orchestrator/engine/"
_SQLITE: Final = "agent_orchestrator/stores/sqlite/"
_POSTGRES: Final = "agent_orchestrator/stores/postgres/"
_SHARED: Final = ("tests/engine/test_shared_store.py",)
_RECOVERY: Final = ("tests/engine/test_recovery.py",)
_CLIENT: Final = ("tests/client/test_embedded.py",)

MUTANTS: Final = (
    Mutant(
        "the fence takes any attempt",
        _ENGINE + "run_changes.py",
        "run is None or run.attempt != attempt or",
        "run is None or",
        ("tests/engine/test_execution.py", "-k", "earlier_attempt"),
    ),
    Mutant(
        "a release does not raise the attempt",
        _ENGINE + "transitions.py",
        "        attempt=run.attempt + 1,\n",
        "        attempt=run.attempt,\n",
        ("tests/engine/test_restart.py",),
    ),
    Mutant(
        "a key that is there is not looked up",
        _ENGINE + "calls.py",
        "if (reply := self.replay(tx)) is not None:",
        "if (reply := self.replay(tx)) is None and False:",
        (*_CLIENT, "-k", "same_key"),
    ),
    Mutant(
        "a key is taken for another request, too",
        _ENGINE + "calls.py",
        "if record.fingerprint != self.fingerprint:",
        "if False:",
        (*_CLIENT, "-k", "key_with_another_body"),
    ),
    Mutant(
        "a reader's cursor is behind what it was given",
        _ENGINE + "feed.py",
        "self._cursor = page[-1].event.seq\n",
        "self._cursor = page[-1].event.seq - 1\n",
        (*_CLIENT, "-k", "event or stream or log or follow"),
    ),
    Mutant(
        "a run is claimed on another host",
        _ENGINE + "worker_pool.py",
        "            host=self.core.config.host.id,\n",
        "            host=None,\n",
        ("tests/engine/test_hosts.py", "-k", "executed_on_the_host"),
        needs_postgres=True,
    ),
    Mutant(
        "a lost run of another host is taken over",
        _ENGINE + "recovery.py",
        "if core.store.lease is not None and not core.is_here(_host_of(view, run, attempt)):",
        "if False:",
        ("tests/engine/test_hosts.py", "-k", "lost_run_waits"),
        needs_postgres=True,
    ),
    Mutant(
        "an agent has children on a host that does not let them in",
        _ENGINE + "placement.py",
        "if name == own or host.directory}",
        "if True}",
        ("tests/engine/test_hosts.py", "-k", "let_them_in"),
        needs_postgres=True,
    ),
    Mutant(
        "the sandbox of an agent stays behind",
        _ENGINE + "confinement.py",
        'return requested.or_else(Confinement(sandbox=widest or "read-only"))',
        "return requested",
        ("tests/engine/test_hosts.py", "-k", "sandbox_of_an_agent"),
        needs_postgres=True,
    ),
    Mutant(
        "a conversation goes along to another host",
        _ENGINE + "sessions.py",
        "        tx.forget_threads(session.id)\n",
        "",
        ("tests/engine/test_hosts.py", "-k", "moves_between"),
        needs_postgres=True,
    ),
    Mutant(
        "a reader of all sessions goes to the head",
        _ENGINE + "feed.py",
        "self._cursor = items[-1].cursor",
        "self._cursor = head",
        ("tests/engine/test_execution.py", "-k", "many_events"),
    ),
    Mutant(
        "the event at the cursor is given again",
        "agent_orchestrator/stores/sql/view.py",
        " AND seq > ? ORDER BY seq LIMIT ?",
        " AND seq >= ? ORDER BY seq LIMIT ?",
        (*_CLIENT, "-k", "cursor"),
    ),
    Mutant(
        "a client forgets its cursor",
        "agent_orchestrator/transports/http.py",
        "            self._cursor = cursor\n",
        "",
        ("tests/client/test_http.py", "-k", "broken_off"),
    ),
    Mutant(
        "what was handed over is taken for what was not",
        _ENGINE + "recovery.py",
        "if not is_delivered:",
        "if is_delivered:",
        _RECOVERY,
    ),
    Mutant(
        "a run is taken up beside its living processes",
        _ENGINE + "recovery.py",
        '        if result.state == "gone"\n',
        "",
        _RECOVERY,
    ),
    Mutant(
        "a run is tried once too often",
        _ENGINE + "recovery.py",
        "if lost >= maximum:",
        "if lost > maximum:",
        _RECOVERY,
    ),
    Mutant(
        "a cancel asked for before a crash is forgotten",
        _ENGINE + "recovery.py",
        "if run.cancel_requested_at is not None:\n        return _Decision",
        "if False:\n        return _Decision",
        _RECOVERY,
    ),
    Mutant(
        "a daemon writes without its lease",
        _POSTGRES + "daemons.py",
        "WHERE id = ?2 AND ended_at IS NULL RETURNING 1),",
        "WHERE id = ?2 RETURNING 1),",
        ("tests/stores/test_postgres_outages.py", "-k", "commits_nothing_more"),
        needs_postgres=True,
    ),
    Mutant(
        "a daemon that begins anew goes on with its former attempts",
        _ENGINE + "run_changes.py",
        "if not is_executed_here(core, run):",
        "if False:",
        (*_SHARED, "-k", "another_daemons_attempt"),
        needs_postgres=True,
    ),
    Mutant(
        "a daemon that lost its lease waits for its agents first",
        _ENGINE + "sharing.py",
        "tasks.start_soon(_await_end, core, pool, stopped)",
        "await _await_end(core, pool, stopped)",
        (*_SHARED, "-k", "lost_again"),
        needs_postgres=True,
    ),
    Mutant(
        "the ids of a daemon do not follow those of another",
        _POSTGRES + "writer.py",
        "self.ids.follow((head.newest_id,))",
        "pass",
        (*_SHARED, "-k", "clocks_of_two"),
        needs_postgres=True,
    ),
    Mutant(
        "a daemon writes times of its machine, not of the database",
        _ENGINE + "core.py",
        "if lease is None or not lease.clock_offset_s:",
        "if True:",
        (*_SHARED, "-k", "times_of_two"),
        needs_postgres=True,
    ),
    Mutant(
        "the end of a daemon does not wake the workers of the others",
        _ENGINE + "worker_pool.py",
        "topics = (run_changes.QUEUE_TOPIC, DAEMONS_TOPIC)",
        "topics = (run_changes.QUEUE_TOPIC,)",
        (*_SHARED, "-k", "wakes_those"),
        needs_postgres=True,
    ),
    Mutant(
        "a run is started by a daemon without its provider",
        _ENGINE + "worker_pool.py",
        "            providers=self.core.config.providers,\n",
        "",
        (*_SHARED, "-k", "with_its_provider"),
        needs_postgres=True,
    ),
    Mutant(
        "a conversation is continued by two daemons at once",
        _ENGINE + "worker_pool.py",
        "            daemon_id=self.core.instance,\n",
        "",
        (*_SHARED, "-k", "stays_with_its_daemon"),
        needs_postgres=True,
    ),
    Mutant(
        "the runs of a daemon at work are taken for lost",
        "agent_orchestrator/stores/postgres/view.py",
        "split_part(worker_id, '/', 1) AND ended_at IS NULL",
        "split_part(worker_id, '/', 1) AND ended_at IS NOT NULL",
        (*_SHARED, "-k", "each_runs_once or another_daemon"),
        needs_postgres=True,
    ),
    Mutant(
        "a connection for notifications that has gone silent is kept",
        _POSTGRES + "notifications.py",
        "                if self._has_received:\n",
        "                if False:\n",
        ("tests/stores/test_postgres_notifications.py", "-k", "dead_is_replaced"),
        needs_postgres=True,
    ),
    Mutant(
        "a commit is answered before it is made",
        _SQLITE + "connection.py",
        '("synchronous", 2)',
        '("synchronous", 0)',
        ("tests/stores/test_sqlite_opening.py", "-k", "required_settings"),
    ),
)


async def mutants(effort: Effort, directory: Path) -> Outcome:
    """Faults put into the fence, the keys, the cursors and the recovery: some test must see each."""
    outcome = Outcome("mutants", effort.seed)
    is_there = programs() is not None and importlib.util.find_spec("psycopg") is not None
    chosen = tuple(mutant for mutant in MUTANTS if is_there or not mutant.needs_postgres)
    count = effort.tries(len(chosen) * 2, 2)
    if count < len(chosen):
        chosen = tuple(effort.chance("mutants").sample(chosen, count))
    for mutant in chosen:
        outcome.tries += 1
        try:
            source = changed(directory / "source", mutant.path, mutant.old, mutant.new)
        except NotThere as reason:
            outcome.fault("broken", f"{mutant.name}: {reason}")
            continue
        argv = ["-m", "pytest", *mutant.tests, "-x", "-q", "--timeout", "60", "-p", "no:randomly"]
        status, said = await _run(argv, source)
        if status != 1:
            outcome.fault("broken", f"{mutant.name}: pytest ended with {status}: {said[-600:]}")
        if not effort.share:
            continue  # the suite, of which this is a part, shows that they pass
        status, said = await _run(argv)
        if status != 0:
            outcome.fault("broken", f"without {mutant.name}: {said[-600:]}")
    return outcome
