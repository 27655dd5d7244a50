"""Agents that wait until a test ends them."""

import anyio
from attrs import define, field
from serving import Serving

from agent_orchestrator.ports.runner import RunContext


@define
class Agents:
    """Agents that wait until a test ends them, and the environment of each."""

    server: Serving = field(init=False)
    environments: dict[str, dict[str, str]] = field(factory=dict)
    _orders: dict[str, str] = field(factory=dict)
    _news: anyio.Event = field(factory=anyio.Event)

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def __call__(self, context: RunContext) -> str:
        run_id = context.run.id
        self.environments[run_id] = dict(context.env)
        self._tell()
        while (order := self._orders.pop(run_id, None)) is None:
            await self._news.wait()
        if order == "ask":
            await context.ask_parent("May I?", kind="approval_request")
        return order

    async def start(self, session_id: str | None = None) -> str:
        """Start an agent in a session (a new one by default) and return its run."""
        session_id = session_id or await self.server.session("agent")
        return await self.at_work(await self.server.say(session_id, "work", wait=False))

    async def at_work(self, run_id: str) -> str:
        with anyio.fail_after(45):
            while run_id not in self.environments:
                await self._news.wait()
        return run_id

    def order(self, run_id: str, order: str) -> None:
        self._orders[run_id] = order
        self._tell()

    async def end(self, run_id: str) -> None:
        self.order(run_id, "done")
        waited = await self.server.client.get(f"/runs/{run_id}/wait")
        assert waited.json()["run"]["status"] == "completed"

    def token(self, run_id: str) -> str:
        return self.environments[run_id]["AGENTCTL_AUTH_TOKEN"]

    def headers(self, run_id: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(run_id)}"}
