"""What an agent's own token lets it do, and that it lasts as long as its attempt."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest
from attrs import define, field
from serving import Serving, serving

from agent_orchestrator.domain.tokens import token_hash
from agent_orchestrator.ports import RunContext

pytestmark = pytest.mark.anyio

ADMIN = "correct-horse-battery-staple"


@define
class Agents:
    """Agents that stand still until they are told how to end, and what each was given."""

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
        with anyio.fail_after(10):
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


@pytest.fixture(params=[(ADMIN,), ()], ids=["tokens", "open"])
async def agents(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agents]:
    agents = Agents()
    async with serving(tmp_path, tokens=request.param, agents={"agent": agents}) as server:
        agents.server = server
        yield agents


async def status(agents: Agents, token: str) -> int:
    """Return what the description of the API answers to a token: all who are known may read it."""
    async with httpx.AsyncClient(base_url=agents.server.url) as client:
        answer = await client.get("/openapi.json", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


async def test_each_attempt_gets_a_token_of_its_own(agents: Agents) -> None:
    first, second = await agents.start(), await agents.start()
    env = agents.environments[first]
    assert env["AGENTCTL_URL"] == agents.server.url
    assert env["AGENTCTL_RUN_ID"] == first
    tokens = [agents.token(run_id) for run_id in (first, second)]
    assert len(set(tokens)) == 2
    assert all(token.startswith("art_") and len(token) == 47 for token in tokens)
    assert [await status(agents, token) for token in tokens] == [200, 200]


async def test_a_token_dies_with_its_run(agents: Agents) -> None:
    run_id, other = await agents.start(), await agents.start()
    await agents.end(run_id)
    assert await status(agents, agents.token(run_id)) == 401
    assert await status(agents, agents.token(other)) == 200
    await agents.server.client.post(f"/runs/{other}/cancel")
    await agents.server.client.get(f"/runs/{other}/wait")
    assert await status(agents, agents.token(other)) == 401


async def test_an_attempt_that_waits_without_an_agent_has_no_token(agents: Agents) -> None:
    run_id = await agents.start()
    agents.order(run_id, "ask")
    await agents.server.client.get(f"/runs/{run_id}/wait", params={"until": "attention"})
    assert await status(agents, agents.token(run_id)) == 200
    assert (await agents.server.engine.drain(0)).parked == (run_id,)
    assert await status(agents, agents.token(run_id)) == 401


@pytest.mark.parametrize("token", ["art_", "art_x", "art_" + "A" * 43, "art_" + "A" * 100_000])
async def test_what_only_looks_like_one_is_nobody(agents: Agents, token: str) -> None:
    assert await status(agents, token[:8000]) == 401


async def test_only_the_hash_is_kept(agents: Agents, tmp_path: Path) -> None:
    run_id = await agents.start()
    token = agents.token(run_id)
    [attempt] = await agents.server.store.read(lambda view: view.attempts(run_id))
    assert attempt.token_hash == token_hash(token)
    await agents.end(run_id)
    kept = stored(tmp_path)
    assert token_hash(token).encode() in kept
    assert token.removeprefix("art_").encode() not in kept


def stored(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.glob("data.db*"))
