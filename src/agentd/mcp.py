"""/mcp: the tools for agents, over MCP's Streamable HTTP without sessions. Callers need a run's token."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
from hypercorn.typing import ASGISendCallable
from quart import Response

from agent_orchestrator.domain.errors import Forbidden, InvalidRequest, Unavailable
from agent_orchestrator.ports.runner import Toolbox
from agent_orchestrator.ports.transport import Gateway
from agent_orchestrator.tools.agent import Agent, calls_over
from agent_orchestrator.tools.arguments import HOLD_S, MAX_HOLD_S
from agent_orchestrator.tools.toolbox import AgentTools
from agent_orchestrator.tools.undelivered import QuestionsOfAttempts
from agent_orchestrator.wire import sse
from agentd.lifetime import Lifetime
from agentd.long_bodies import long_body_of
from agentd.requests import HttpRequest, body_object, query_pairs
from agentd.responses import (
    LiveResponse,
    json_response,
    problem_response,
    stream_part,
    stream_start,
)

if TYPE_CHECKING:
    from agent_orchestrator.mcp.exchange import EncodeLong, ExchangeReply
    from agent_orchestrator.mcp.server import ToolServer

STREAM_AFTER_S: Final = 1.0
"""Seconds to wait for an answer before it becomes a stream. An earlier answer is plain JSON."""

Exchange = Callable[
    ["ToolServer", Toolbox, Mapping[str, Any], Mapping[str, str], "EncodeLong"],
    Awaitable["ExchangeReply"],
]


class ToolEndpoint:
    """Answers the MCP messages of agents.

    The MCP server is imported at the first message, because it takes half a second and 30 MB.

    :param keepalive_s: interval of keepalives while an answer is held, in seconds.
    """

    def __init__(
        self, gateway: Gateway, lifetime: Lifetime, *, version: str, keepalive_s: float
    ) -> None:
        self._gateway = gateway
        self._lifetime = lifetime
        self._version = version
        self._keepalive_s = keepalive_s
        self._undelivered = QuestionsOfAttempts()
        self._loading = anyio.Lock()
        self._loaded: tuple[ToolServer, Exchange] | None = None

    async def answer(self, received: HttpRequest) -> Response:
        """Return the answer to a message.

        :raises Forbidden: if its sender is not a run.
        """
        caller = received.principal.run
        if caller is None:
            raise Forbidden(
                "the tools at /mcp are for agents: use the token of a run, which an agent "
                "has in AGENTCTL_AUTH_TOKEN"
            )
        agent = Agent(
            calls_over(self._gateway.acting_as(received.principal)),
            caller.run_id,
            caller.session_id,
            _hold_s(query_pairs(received.query_string)),
            self._undelivered.of(caller),
        )
        message = await body_object(received)
        server, exchange = self._loaded or await self._load()
        headers = {name.lower(): value for name, value in received.headers}
        answering = partial(exchange, server, AgentTools(agent), message, headers, long_body_of)
        if message.get("method") != "tools/call" or "text/event-stream" not in headers.get(
            "accept", ""
        ):
            return _plain_response(await answering())
        return HeldResponse(answering, self._lifetime, self._keepalive_s)

    async def _load(self) -> "tuple[ToolServer, Exchange]":
        async with self._loading:
            if self._loaded is None:
                self._loaded = await anyio.to_thread.run_sync(_import, self._version)
            return self._loaded


def _import(version: str) -> "tuple[ToolServer, Exchange]":
    from agent_orchestrator.mcp.exchange import exchange
    from agent_orchestrator.mcp.server import make_server

    return make_server(version), exchange


def _hold_s(query: list[tuple[str, str]]) -> float:
    """Return the default number of seconds to hold a call, from the query."""
    problems = {name: "is not a parameter of this call" for name, _ in query if name != "hold_s"}
    values = [value for name, value in query if name == "hold_s"]
    if len(values) > 1:
        problems["hold_s"] = "is given twice"
    if problems:
        raise InvalidRequest.of(problems)
    if not values:
        return HOLD_S
    text = values[0]
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= MAX_HOLD_S:
        return float(text)
    raise InvalidRequest.of({"hold_s": f"must be an integer between 0 and {MAX_HOLD_S:,}"})


def _plain_response(answer: "ExchangeReply") -> Response:
    if not answer.text:
        return Response(b"", answer.status)
    body = answer.text if answer.long is None else answer.long.between(answer.text, b"}")
    return json_response(body, answer.status)


def _pieces(answer: "ExchangeReply") -> tuple[bytes, ...]:
    if answer.long is None:
        return (answer.text,)
    return (answer.text, *answer.long.pieces, b"}")


class HeldResponse(LiveResponse):
    """The answer of a tool: JSON if it comes soon, otherwise a stream with keepalives."""

    def __init__(
        self,
        answering: "Callable[[], Awaitable[ExchangeReply]]",
        lifetime: Lifetime,
        keepalive_s: float,
    ) -> None:
        super().__init__()
        self._answering = answering
        self._lifetime = lifetime
        self._keepalive_s = keepalive_s

    async def send_all(self, send: ASGISendCallable) -> Response | None:
        """Send the answer, unless the daemon closes first."""
        replies: list[ExchangeReply] = []
        done = anyio.Event()
        is_stream = False

        async def work() -> None:
            replies.append(await self._answering())
            done.set()

        with self._lifetime.until_closing():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work)
                with anyio.move_on_after(STREAM_AFTER_S):
                    await done.wait()
                if not replies:
                    is_stream = True
                    await send(stream_start(self))
                while not replies:
                    await send(stream_part(sse.KEEPALIVE))
                    with anyio.move_on_after(self._keepalive_s):
                        await done.wait()
        if is_stream:
            for piece in sse.encode_json(_pieces(replies[0]), "message") if replies else ():
                await send(stream_part(piece))
            await send(stream_part(b"", more=False))
            return None
        if replies:
            return _plain_response(replies[0])
        return problem_response(
            Unavailable("the daemon is stopping: try again shortly", retry_after_s=5)
        )
