"""Measure agentd's memory for runs that wait for answers without a process.

Their agents are processes that a command runner can resume; each is stopped as soon as its run
waits, and gets the answer in a new process.
"""

import time
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import psutil

from agent_orchestrator import Client, connect
from agent_orchestrator.domain.model import Request
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import agentd

AT_ONCE: Final = 8
"""Connections that set agents to asking: more than there are workers."""

_PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.05
_SAMPLE: Final = 20
"""Of the answers: how many are given, to see that the others could be."""

_OTHERS: Final = 10
"""Processes agentd may have for itself, however many runs are parked: a fork server and supervisors."""

_AGENT: Final = """\
echo '{"thread": "t-1"}'
[ $# -gt 0 ] && echo '{"say": "went on"}' && exit
exec sleep 600
"""

_CONFIG: Final = """\
[daemon]
park_after_s = 0

[providers.parking]
runner = "command"
argv = ["/bin/sh", "AGENT"]
resume_argv = ["/bin/sh", "AGENT", "{thread}"]
output = "jsonl"
map = [
    { when = { thread = "t-1" }, thread = "$.thread" },
    { when = { say = "went on" }, emit = "agent.message", data = { text = "$.say" } },
]
"""


def measure(effort: Effort, directory: Path) -> list[Figure]:
    count = effort.of(full=1000, quick=200, smoke=10)
    directory.mkdir(parents=True, exist_ok=True)
    agent = directory / "agent.sh"
    agent.write_text(_AGENT)
    with agentd(directory / "agentd", config=_CONFIG.replace("AGENT", str(agent))) as daemon:
        process = psutil.Process(daemon.pid)
        before = process.memory_info().rss
        requests = anyio.run(partial(_park, daemon.url, count))
        left = _agents(process)
        check(not left, f"{len(left)} processes are left of runs that are parked: {left[:3]}")
        others = len(process.children(recursive=True))
        check(others <= _OTHERS, f"agentd has {others} processes of its own")
        weight = process.memory_info().rss
        anyio.run(partial(_answer, daemon.url, requests[:: max(1, count // _SAMPLE)]))
    return [
        Figure(
            name=f"memory of agentd while {count:,} runs of processes are parked",
            value=weight / 1024**2,
            bound=150,
            unit="MiB",
            places=1,
            detail=f"resident; {before / 1024**2:.1f} MiB before the first; no process is left",
        )
    ]


def _agents(daemon: psutil.Process) -> list[str]:
    """Return the stable number of agentd's descendants, without fork server and supervisors."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        found = []
        for child in daemon.children(recursive=True):
            try:
                if (argv := child.cmdline()) and argv[0] in ("sleep", "/bin/sh"):
                    found.append(" ".join(argv))
            except psutil.Error:
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(_LOOK_S)


async def _park(url: str, count: int) -> list[Request]:
    requests: list[Request] = []

    async def some(client: Client, count: int) -> None:
        requests.extend([await _asked(client) for _ in range(count)])

    async with connect(url) as client:
        async with anyio.create_task_group() as tasks:
            for place in range(AT_ONCE):
                tasks.start_soon(some, client, len(range(place, count, AT_ONCE)))
        counts = (await client.status()).queue_counts
        check(counts.waiting_count == count, f"{counts.waiting_count} runs wait")
        parked = [await client.get_run(request.run_id) for request in requests]
        check(all(run.worker_id is None for run in parked), "some runs have a worker")
    return requests


async def _asked(client: Client) -> Request:
    """Start an agent, ask a question for it, and return the question once the run is parked."""
    session = await client.create_session()
    sent = await client.send_message(session.id, "work")
    assert sent.run is not None
    request: Request | None = None
    with anyio.fail_after(_PATIENCE_S):
        async with client.events(session.id, follow=True) as events:
            async for event in events:
                if event.event_type == "thread.started":
                    asked = await client.reply_parent(
                        sent.run.id, "May I?", request_kind="approval_request", wait=True
                    )
                    request = asked.request
                if event.event_type == "run.waiting" and event.data.get("parked"):
                    break
    assert request is not None
    return request


async def _answer(url: str, requests: list[Request]) -> None:
    async with connect(url) as client:
        for request in requests:
            await client.resolve_request(request.id, "approve")
        for request in requests:
            run = (await client.wait_run(request.run_id, timeout_s=_PATIENCE_S)).run
            check(run.result is not None, f"a run ended {run.status}: {run.error}")
            assert run.result is not None
            check(run.result.text == "went on", f"its agent said {run.result.text!r}")
            check(run.attempt == 2, f"it took {run.attempt} attempts")
