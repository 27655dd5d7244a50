"""`has_used_token`, by which a runner sees that its agent reached the daemon."""

from pathlib import Path

import httpx
import pytest
from loops import ON_ONE_LOOP
from serving import serving

from agent_orchestrator.ports.runner import RunContext

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


async def test_has_used_token_is_true_after_the_agent_used_its_token(tmp_path: Path) -> None:
    urls: list[str] = []

    async def agent(context: RunContext) -> str:
        seen = [context.has_used_token]
        token = context.env["AGENTCTL_AUTH_TOKEN"]
        for used in ("art_of_another", token):
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {used}"}) as client:
                await client.get(f"{urls[0]}/status")
            seen.append(context.has_used_token)
        return str(seen)

    async with serving(tmp_path, agents={"agent": agent}) as server:
        urls.append(server.url)
        for _ in range(2):  # the second run has another token
            session_id = await server.session("agent")
            run_id = await server.say(session_id, "go")
            run = (await server.client.get(f"/runs/{run_id}")).json()["run"]
            assert run["result"]["text"] == "[False, False, True]"
