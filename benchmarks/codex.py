"""Measure a turn with the real codex through the gateway, compared with codex alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from agent_orchestrator import Client, connect
from agent_orchestrator.runners.codex.locate import locate
from agent_orchestrator.runners.program import NotInstalled
from benchmarks.figures import Effort, Figure, check, warm
from benchmarks.processes import ROOT, agentd, environment
from benchmarks.turns import check_log, turn

sys.path.append(str(ROOT / "tests" / "codex"))
from model_server import (  # type: ignore[import-not-found]
    ModelServer,
    acknowledgement,
    codex_env,
    write_codex_home,
)

PROMPT = "Say in one line what this repository is for."

CONFIG = """\
[providers.codex]
runner = "codex-exec"
command = {command}
# Codex alone has none; benchmarks/tools.py measures their cost.
tools = false

[routing]
default = "codex"
"""


class NotMeasured(Exception):
    """A figure needs a program that is not installed."""


def native_codex() -> str:
    """Return the native codex of the tests.

    :raises NotMeasured: if it is not installed.
    """
    try:
        return str(locate(str(ROOT / "tests" / "node_modules" / ".bin" / "codex"), os.environ))
    except NotInstalled as problem:
        raise NotMeasured(f"{problem}; run: bin/setup agents") from None


def measure(effort: Effort, directory: Path) -> list[Figure]:
    codex = native_codex()
    count = effort.of(full=51, quick=11, smoke=1)
    work = directory / "work"
    work.mkdir(parents=True)
    with ModelServer() as models:
        home = write_codex_home(
            directory / "home", models.port, reads_projects=effort.name != "smoke"
        )
        env = codex_env(home)
        config = CONFIG.format(command=json.dumps(codex))
        with agentd(directory / "daemon", config=config, env=env) as daemon:
            compare = partial(_compare, daemon.url, environment(env), work, count)
            gateway, bare, resumed, bare_resumed = anyio.run(compare)
        prompts = [request.prompt for request in models.requests]
    expected = 1 + 4 * count
    check(prompts == [PROMPT] * expected, f"the model was asked {len(prompts)}, not {expected}")
    return [
        _figure("new thread", gateway, bare),
        _figure("resumed thread", resumed, bare_resumed),
    ]


def _figure(kind: str, gateway: float, bare: float) -> Figure:
    return Figure(
        name=f"turn with codex, {kind}: gateway over HTTP / bare codex exec",
        value=gateway / bare,
        bound=1.10,
        detail=f"{gateway * 1000:.1f} ms / {bare * 1000:.1f} ms",
    )


async def _compare(url: str, env: Mapping[str, str], work: Path, count: int) -> list[float]:
    taken: list[list[float]] = [[], [], [], []]
    async with connect(url) as client:
        argv = await _argv(client, work)
        for number in range(count):
            session = await client.create_session(cwd=str(work))
            thread: str | None = None

            async def gateway(session_id: str = session.id) -> float:
                return await _gateway_turn(client, session_id)

            async def bare(resume: str | None = None) -> float:
                nonlocal thread
                turn_of = partial(bare_turn, argv, env, work, resume)
                seconds, thread = await anyio.to_thread.run_sync(turn_of)
                return seconds

            # Each goes first every other time, as a turn may profit from the one before.
            if number % 2:
                fresh, alone = await gateway(), await bare()
                first = thread
                resumed, again = await gateway(), await bare(thread)
            else:
                alone, fresh = await bare(), await gateway()
                first = thread
                again, resumed = await bare(thread), await gateway()
            check(thread == first, "codex went on with another thread")
            await check_log(client, session.id, 2)
            for results, seconds in zip(taken, (fresh, alone, resumed, again), strict=True):
                results.append(seconds)
    return [warm(results) for results in taken]


async def _gateway_turn(client: Client, session_id: str) -> float:
    seconds, answer = await turn(client, session_id, PROMPT)
    check(answer == acknowledgement(PROMPT), f"codex answered {answer!r}")
    return seconds


async def _argv(client: Client, work: Path) -> tuple[str, ...]:
    """Return how the gateway starts codex for a new thread."""
    session = await client.create_session(cwd=str(work))
    await _gateway_turn(client, session.id)
    (run,) = (await client.list_runs(session_id=session.id)).runs
    invocation = (await client.diagnose_run(run.id)).diagnostics.codex_invocation
    assert invocation is not None
    check(invocation.argv[-1] == "-", f"codex has another argument at the end: {invocation.argv}")
    return tuple(invocation.argv)


def bare_turn(
    argv: Sequence[str], env: Mapping[str, str], work: Path, thread: str | None
) -> tuple[float, str]:
    """Run a turn of codex alone. Return the seconds it took, and its thread.

    :param argv: how it is started for a new thread, with the prompt on its stdin.
    :param thread: the thread that it resumes; None for a new one.
    """
    resume = [] if thread is None else ["resume", thread]
    argv = [*argv[:-1], *resume, argv[-1]]
    started = time.perf_counter()
    ended = subprocess.run(
        argv,
        cwd=work,
        env=env,
        input=PROMPT.encode(),
        capture_output=True,
        check=False,
        start_new_session=True,  # as the gateway does: a session has a share of the processors
    )
    seconds = time.perf_counter() - started
    check(ended.returncode == 0, f"codex exec ended with {ended.returncode}: {ended.stderr!r}")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    texts = [event["item"]["text"] for event in events if event["type"] == "item.completed"]
    check(texts == [acknowledgement(PROMPT)], f"codex answered {texts}")
    return seconds, str(events[0]["thread_id"])
