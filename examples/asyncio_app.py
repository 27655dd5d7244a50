"""Agents in an asyncio application: a task group asks two agents and prints what they do.

python examples/asyncio_app.py "List the files here"
"""

import asyncio
import sys

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.runners.demo import DemoRunner


async def ask(client: Client, name: str, text: str) -> str:
    session = await client.create_session(title=name)
    sent = await client.send_message(session.id, text)
    async with client.events(session.id, follow=True) as events:
        async for event in events:
            print(f"{name}  {event.seq:>3}  {event.event_type}")
            if event.event_type in ("run.completed", "run.failed", "run.canceled"):
                break
    run = (await client.wait_run(sent.run.id)).run if sent.run else None
    return run.result.text if run and run.result else "no result"


async def main(text: str) -> None:
    # Without `runners` the agent is codex. The file keeps sessions and logs for the next start.
    async with open_embedded("asyncio_app.db", runners=[DemoRunner()]) as client:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(client, name, text)) for name in ("ann", "bob")]
        for task in asked:
            print(task.result())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Hello"))
