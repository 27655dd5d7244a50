"""Measure a turn with the real codex with the tools for agents, compared with one without."""

import json
from functools import partial
from pathlib import Path

import anyio

from agent_orchestrator import Client, connect
from benchmarks.codex import (
    PROMPT,
    ModelServer,
    acknowledgement,
    codex_env,
    native_codex,
    write_codex_home,
)
from benchmarks.figures import Effort, Figure, check, warm
from benchmarks.processes import agentd
from benchmarks.turns import check_log, turn

CONFIG = """\
[providers.with]
runner = "codex-exec"
command = {command}

[providers.without]
runner = "codex-exec"
command = {command}
tools = false

[routing]
default = "with"
"""

PROVIDERS = ("with", "without")


def measure(effort: Effort, directory: Path) -> list[Figure]:
    codex = native_codex()
    count = effort.of(full=26, quick=11, smoke=1)
    work = directory / "work"
    work.mkdir(parents=True)
    with ModelServer() as models:
        env = codex_env(
            write_codex_home(directory / "home", models.port, reads_projects=effort.name != "smoke")
        )
        config = CONFIG.format(command=json.dumps(codex))
        with agentd(directory / "daemon", config=config, env=env) as daemon:
            results = anyio.run(partial(_compare, daemon.url, work, count))
        # Codex 0.169 tells this model the server's name; the model must search for its tools.
        offered = sum("mcp__agent_orchestrator" in json.dumps(one.body) for one in models.requests)
    asked = 4 * count
    check(len(models.requests) == asked, f"the model was asked {len(models.requests)}, not {asked}")
    check(2 * offered == asked, f"the tools were offered {offered} times, not {asked // 2}")
    return [
        Figure(
            name=f"turn with codex, {kind}: with the tools / without",
            value=results["with", kind] / results["without", kind],
            bound=1.10,
            detail=f"{results['with', kind] * 1000:.1f} ms / {results['without', kind] * 1000:.1f} ms",
        )
        for kind in ("new thread", "resumed thread")
    ]


async def _compare(url: str, work: Path, count: int) -> dict[tuple[str, str], float]:
    taken: dict[tuple[str, str], list[float]] = {}
    async with connect(url) as client:
        for number in range(count):
            # Each goes first every other time, as a turn may profit from the one before.
            order = PROVIDERS if number % 2 else PROVIDERS[::-1]
            sessions = {
                name: (await client.create_session(cwd=str(work), provider=name)).id
                for name in order
            }
            for kind in ("new thread", "resumed thread"):
                for name in order:
                    seconds = await _turn(client, sessions[name])
                    taken.setdefault((name, kind), []).append(seconds)
            for session_id in sessions.values():
                await check_log(client, session_id, 2)
    # The first agent waits while the daemon loads the tools.
    return {name: warm(seconds) for name, seconds in taken.items()}


async def _turn(client: Client, session_id: str) -> float:
    seconds, answer = await turn(client, session_id, PROMPT)
    check(answer == acknowledgement(PROMPT), f"codex answered {answer!r}")
    return seconds
