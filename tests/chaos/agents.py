"""The daemon is killed with real agents at work."""

import json
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from benchmarks.codex import NotMeasured, native_codex
from tests.chaos.daemon import daemon
from tests.chaos.kills import Siege
from tests.chaos.outcome import Effort, Outcome, Skipped
from tests.chaos.traffic import Ack, Traffic
from tests.codex.model_server import ModelServer, codex_env, write_codex_home

from agent_orchestrator import Client, RunStatus, connect
from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.model import MANUAL

AGENTS: Final = 16

_PATIENCE_S: Final = 180.0

CONFIG: Final = """\
[providers.codex]
runner = "codex-exec"
command = {codex}
sandbox = "danger-full-access"
env = {{ set = {{ {env} }} }}

[routing]
default = "codex"
"""


async def codex_restart(effort: Effort, directory: Path) -> Outcome:
    """``kill -9`` while 16 real codex work, each with a command of its own; they go on after it."""
    outcome = Outcome("codex", effort.seed)
    try:
        codex = native_codex()
    except NotMeasured as reason:
        raise Skipped(str(reason)) from None
    count = effort.tries(AGENTS, 2)
    for number in range(effort.tries(5, 1)):
        outcome.tries += 1
        place = directory / f"{number}"
        place.mkdir(parents=True)
        with ModelServer() as models:
            env = codex_env(write_codex_home(place / "home", models.port))
            config = CONFIG.format(
                codex=json.dumps(codex),
                env=", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items()),
            )
            arguments = ("--max-concurrency", str(count))
            with daemon(place, config=config, arguments=arguments) as one:
                under = Siege(
                    one, Traffic(one.url, effort, effort.chance("codex", number), outcome), outcome
                )
                if not await under.start():
                    return outcome
                with anyio.fail_after(_PATIENCE_S):
                    await _at_work(under.traffic, count)
                # Each is somewhere else in its turn.
                await anyio.sleep(under.traffic.chance.uniform(0, 2))
                await anyio.to_thread.run_sync(one.kill)
                await under.check()
                if not await under.start():
                    return outcome
                async with connect(one.url) as client:
                    await _ended(client, under.traffic, outcome)
                await under.finish()
    return outcome


async def _at_work(traffic: Traffic, count: int) -> None:
    """Send each of so many sessions a message; return when the agents of all have begun."""
    async with connect(traffic.url) as client, anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(_begun, client, traffic, number)


async def _begun(client: Client, traffic: Traffic, number: int) -> None:
    session = await client.create_session()
    text = f"shell sleep 2; echo {number}\nsay done {number}"
    sent = await client.send_message(session.id, text, idempotency_key=f"k{number}")
    assert sent.run is not None
    key = f"k0-{number}"
    traffic.acks[key] = Ack(key, text, sent.message.id, session.id, sent.run.id)
    traffic.outcome.acknowledged += 1
    async with client.events(session.id, follow=True) as events:
        async for event in events:
            if event.event_type == "tool.started":
                break


async def _ended(client: Client, traffic: Traffic, outcome: Outcome) -> None:
    """Expect that every run goes on after the crash, with its conversation, to its end."""
    for ack in traffic.acks.values():
        assert ack.run_id is not None
        with anyio.move_on_after(_PATIENCE_S):
            run = await client.get_run(ack.run_id)
            while not is_terminal(run.status):
                run = (await client.wait_run(ack.run_id, timeout_s=30)).run
        log = [event async for event in client.events(ack.session_id)]
        threads = [event for event in log if event.event_type.startswith("thread.")]
        if run.status is not RunStatus.COMPLETED or run.provider == MANUAL:
            outcome.fault("broken", f"{run.id} is {run.status} after the crash: {run.error}")
        elif run.attempt > 1 and len(threads) != 1:
            outcome.fault("doubled", f"{run.id} went on with another conversation")
