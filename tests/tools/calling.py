"""Agents that wait until a test ends them; meanwhile the test uses their tools."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx
import httpx2
from attrs import define, field
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from serving import Serving, serving

from agent_orchestrator.ports.runner import RunContext

ADMIN = "correct-horse-battery-staple"


@define
class Standing:
    server: Serving = field(init=False)
    environments: dict[str, dict[str, str]] = field(factory=dict)
    _ends: dict[str, str] = field(factory=dict)
    _news: anyio.Event = field(factory=anyio.Event)

    async def __call__(self, context: RunContext) -> str:
        self.environments[context.run.id] = dict(context.env)
        self._tell()
        while context.run.id not in self._ends:
            await self._news.wait()
        return self._ends[context.run.id]

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def at_work(self, run_id: str) -> str:
        with anyio.fail_after(60):
            while run_id not in self.environments:
                await self._news.wait()
        return run_id

    async def start(self) -> str:
        """Start an agent in a new session and return its run."""
        session_id = await self.server.session("agent")
        return await self.at_work(await self.server.say(session_id, "work", wait=False))

    async def end(self, run_id: str, text: str = "done") -> None:
        self._ends[run_id] = text
        self._tell()
        waited = await self.server.client.get(f"/runs/{run_id}/wait", params={"timeout_s": 50})
        assert waited.json()["run"]["status"] == "completed"

    def token(self, run_id: str) -> str:
        return self.environments[run_id]["AGENTCTL_AUTH_TOKEN"]

    @asynccontextmanager
    async def tools(
        self, run_id: str, *, mode: Literal["legacy", "auto"] = "legacy", query: str = ""
    ) -> AsyncIterator[Client]:
        """Connect as a run."""
        headers = {"Authorization": f"Bearer {self.token(run_id)}"}
        async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
            there = streamable_http_client(f"{self.server.url}/mcp{query}", http_client=http)
            async with Client(there, mode=mode) as client:
                yield client

    @asynccontextmanager
    async def family(self) -> AsyncIterator[tuple[Client, str, Client, str]]:
        """Connect as a parent and as its child, both at work; give their tools and runs."""
        parent = await self.start()
        async with self.tools(parent) as above:
            spawned = await use(above, "session_spawn", task="work")
            child = await self.at_work(spawned["run"]["id"])
            async with self.tools(child) as below:
                yield above, parent, below, child

    def post(self, run_id: str | None, message: Any, **more: Any) -> httpx.Request:
        """Return the request that sends one message."""
        headers: dict[str, str] = {"Accept": "application/json, text/event-stream"}
        if run_id is not None:
            headers["Authorization"] = f"Bearer {self.token(run_id)}"
        headers |= more.pop("headers", {})
        return self.server.client.build_request(
            "POST", "/mcp", json=message, headers=headers, **more
        )

    async def send(self, run_id: str | None, message: Any, **more: Any) -> httpx.Response:
        return await self.server.client.send(self.post(run_id, message, **more))


def call(name: str, arguments: Mapping[str, Any], number: int = 1) -> dict[str, Any]:
    """Return the message that calls a tool."""
    params = {"name": name, "arguments": dict(arguments)}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


async def use(tools: Client, name: str, **arguments: Any) -> dict[str, Any]:
    """Use a tool and return its answer; it must succeed."""
    result = await tools.call_tool(name, arguments)
    assert not result.is_error, result.structured_content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def refused(tools: Client, name: str, **arguments: Any) -> dict[str, Any]:
    """Use a tool that must fail; return its error."""
    result = await tools.call_tool(name, arguments)
    assert result.is_error
    assert isinstance(result.structured_content, dict)
    error: dict[str, Any] = result.structured_content["error"]
    return error


@asynccontextmanager
async def standing(directory: Path, **options: Any) -> AsyncIterator[Standing]:
    agents = Standing()
    async with serving(directory, tokens=(ADMIN,), agents={"agent": agents}, **options) as server:
        agents.server = server
        yield agents
