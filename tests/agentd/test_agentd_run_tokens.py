"""Tokens of runs: each lasts as long as its attempt."""

from pathlib import Path

import httpx
import pytest
from waiting_agents import Agents

from agent_orchestrator.domain.tokens import token_hash

pytestmark = pytest.mark.anyio


async def status(agents: Agents, token: str) -> int:
    """Return the status of the API description for a token; every known caller may read it."""
    async with httpx.AsyncClient(base_url=agents.server.url) as client:
        answer = await client.get("/openapi.json", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


async def test_each_attempt_gets_a_new_token(agents: Agents) -> None:
    first, second = await agents.start(), await agents.start()
    env = agents.environments[first]
    assert env["AGENTCTL_URL"] == agents.server.url
    assert env["AGENTCTL_RUN_ID"] == first
    tokens = [agents.token(run_id) for run_id in (first, second)]
    assert len(set(tokens)) == 2
    assert all(token.startswith("art_") and len(token) == 47 for token in tokens)
    assert [await status(agents, token) for token in tokens] == [200, 200]


async def test_token_ends_with_its_run(agents: Agents) -> None:
    run_id, other = await agents.start(), await agents.start()
    await agents.end(run_id)
    assert await status(agents, agents.token(run_id)) == 403
    assert await status(agents, agents.token(other)) == 200
    await agents.server.client.post(f"/runs/{other}/cancel")
    await agents.server.client.get(f"/runs/{other}/wait")
    assert await status(agents, agents.token(other)) == 403


async def test_token_ends_when_the_run_is_parked(agents: Agents) -> None:
    run_id = await agents.start()
    agents.order(run_id, "ask")
    await agents.server.client.get(f"/runs/{run_id}/wait", params={"until": "attention"})
    assert await status(agents, agents.token(run_id)) == 200
    assert (await agents.server.engine.drain(0)).parked == (run_id,)
    assert await status(agents, agents.token(run_id)) == 403


@pytest.mark.parametrize("token", ["art_", "art_x", "art_" + "A" * 43, "art_" + "A" * 100_000])
async def test_malformed_run_token_is_unauthorized(agents: Agents, token: str) -> None:
    assert await status(agents, token[:8000]) == 401


async def test_only_the_hash_of_a_token_is_stored(agents: Agents, tmp_path: Path) -> None:
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
