"""Run agents until killed: ``python holder.py`` with a JSON list of agents on stdin.

Each has ``argv``, ``env``, ``cwd`` and the text for its ``stdin``. It prints ``{"pids": […]}``
once each agent has printed its ``until`` line, and has ended if it has ``ends``.
"""

import json
import os
import signal
import sys

import anyio

from agent_orchestrator.hosts.linux.supervisor import fork_server
from agent_orchestrator.runners.process import agent_process


async def hold(agent, pids, ready):
    async with agent_process(
        agent["argv"], cwd=agent["cwd"], env=agent["env"], stdin=agent["stdin"].encode()
    ) as process:
        async for line in process.lines():
            if agent["until"] in line.data.decode():
                pids.append(process.pid)
                if not agent["ends"]:
                    ready.set()
        if agent["ends"]:
            await process.wait()
            ready.set()
        await anyio.sleep_forever()


async def main():
    agents = json.load(sys.stdin)
    pids, waits = [], []
    async with fork_server() as held, anyio.create_task_group() as tasks:
        await held.prepare()
        for agent in agents:
            waits.append(anyio.Event())
            tasks.start_soon(hold, agent, pids, waits[-1])
        for ready in waits:
            await ready.wait()
        if os.environ.get("FORKED") and os.fork() == 0:
            signal.pause()  # without execve the child has all our descriptors
        print(json.dumps({"pids": pids}), flush=True)
        await anyio.sleep_forever()


anyio.run(main, backend=sys.argv[1])
