"""An application object whose start() and stop() may be called from different tasks.

python examples/start_stop.py "Hello"
"""

import asyncio
import sys
from contextlib import AsyncExitStack

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.runners.demo import DemoRunner


class Agents:
    client: Client

    def __init__(self, database: str) -> None:
        self._database = database
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        scope = open_embedded(self._database, runners=[DemoRunner()])
        self.client = await self._stack.enter_async_context(scope)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def ask(self, text: str) -> str:
        session = await self.client.create_session()
        sent = await self.client.send_message(session.id, text)
        assert sent.run is not None  # a user's message always has one
        run = (await self.client.wait_run(sent.run.id, timeout_s=600)).run
        return run.result.text if run.result else run.status


async def main(text: str) -> None:
    agents = Agents("start_stop.db")
    # On Python 3.11, wait_for runs start() in a separate task.
    await asyncio.wait_for(agents.start(), timeout=30)
    try:
        print(await agents.ask(text))
    finally:
        await asyncio.create_task(agents.stop())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Hello"))
