"""The orchestration tools as codex's dynamic tools: no MCP server for each thread, and no approval.

Codex calls a dynamic tool through the client that began the thread, so that the call reaches the run
that is at work on it now; from here it goes to the daemon's ``/mcp`` with that run's token. Codex
0.169 keeps a thread's dynamic tools with the thread, also for the process that resumes it; it takes
them for new threads only.

A thread that was begun without them (by exec, or before its agent was to have them) has the tools as an
MCP server. Its configuration holds the run's token, and codex takes that when it loads a thread: such a
thread is let go of when a run ends, and loaded anew for the next.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.codex.items import JsonObject, text
from agent_orchestrator.runners.codex.tools import HOLD_S, tools_url

if TYPE_CHECKING:
    import httpx

LIST_S: Final = 60.0
"""Seconds for the list: the first agent of a daemon waits for what the tools stand on to be loaded."""


@define(eq=False)
class DynamicTools:
    """The tools of the daemons whose agents are served; :meth:`close` at the end."""

    _client: "httpx.AsyncClient | None" = field(default=None, init=False)
    _specs: dict[str, Sequence[JsonObject]] = field(factory=dict, init=False)

    async def specs(self, env: Mapping[str, str]) -> Sequence[JsonObject]:
        """Return what to begin a thread with; nothing for a run without a daemon.

        :raises AgentFailed: ``provider_error`` if the daemon does not say which there are: an agent
            that cannot ask its parent would guess instead.
        """
        url = tools_url(env)
        if url is None:
            return ()
        if url not in self._specs:
            result = await self._request(env, "tools/list", {}, LIST_S)
            if not isinstance(tools := result.get("tools"), list):
                raise AgentFailed("provider_error", f"no orchestration tools: {text(result)}")
            self._specs[url] = [_spec(tool) for tool in tools]
        return self._specs[url]

    async def call(self, env: Mapping[str, str], params: JsonObject) -> JsonObject:
        """Carry out codex's ``item/tool/call`` and return the answer to it."""
        arguments = params.get("arguments")
        request = {
            "name": text(params.get("tool")),
            "arguments": arguments if isinstance(arguments, dict) else {},
        }
        try:
            result = await self._request(env, "tools/call", request, None)
        except AgentFailed as failure:
            return _answer(failure.message, success=False)
        content = result.get("content")
        parts = [part for part in content if isinstance(part, dict)] if content else []
        said = "\n".join(text(part.get("text")) for part in parts)
        return _answer(said, success=not result.get("isError"))

    async def close(self) -> None:
        """Let go of the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _request(
        self, env: Mapping[str, str], method: str, params: JsonObject, timeout_s: float | None
    ) -> JsonObject:
        import httpx

        if self._client is None:
            # As many as there are agents may wait in a call at once, some for the calls of others.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
            # Certificates take tens of milliseconds of the loop to load, and plain HTTP has none.
            verify = not str(env.get("AGENTCTL_URL")).startswith("http:")
            self._client = httpx.AsyncClient(trust_env=False, limits=limits, verify=verify)
        url = f"{env.get('AGENTCTL_URL')}/mcp?hold_s={HOLD_S}"
        headers = {
            "Accept": "application/json",
            "Authorization": f"Bearer {env.get('AGENTCTL_AUTH_TOKEN')}",
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            response = await self._client.post(
                url, json=message, headers=headers, timeout=timeout_s
            )
            said = response.json()
        except (httpx.HTTPError, ValueError) as error:
            note = f"the daemon's tools cannot be reached: {type(error).__name__}: {error}"
            raise AgentFailed("provider_error", note) from error
        result = said.get("result") if isinstance(said, dict) else None
        if not isinstance(result, dict):
            why = said.get("error") if isinstance(said, dict) else said
            raise AgentFailed("provider_error", f"{method} was refused: {text(why)}")
        return result


def _spec(tool: JsonObject) -> JsonObject:
    return {
        "type": "function",
        "name": text(tool.get("name")),
        "description": text(tool.get("description")),
        "inputSchema": tool.get("inputSchema") or {"type": "object"},
    }


def _answer(said: str, *, success: bool) -> JsonObject:
    return {"success": success, "contentItems": [{"type": "inputText", "text": said}]}
