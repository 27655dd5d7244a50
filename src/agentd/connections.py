"""The web framework's connections with structured cancellation.

If a client disconnects, Quart cancels the request's task from outside. No scope inside can shield
from that, so a read of the store in a thread would go on unattended. Here each request runs in a
cancel scope, which is cancelled when the client disconnects.
"""

from typing import Any, Final, cast

import anyio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.asgi import ASGIHTTPConnection, ASGIWebsocketConnection
from quart.typing import ResponseTypes
from quart.wrappers import Request as QuartRequest

from agent_orchestrator.operations import OPERATIONS
from agentd import cors
from agentd.requests import HttpRequest
from agentd.responses import LiveResponse

STREAMED: Final = frozenset(
    (operation.method, operation.path) for operation in OPERATIONS if operation.takes_lines
)
"""The requests whose bodies are taken in parts."""


class HttpConnection(ASGIHTTPConnection):
    """One request."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Handle it until it is answered or the client disconnects."""
        request = cast("HttpRequest", self._create_request_from_scope(send))
        if (request.method, request.path) in STREAMED:
            request.body.stream()
        async with anyio.create_task_group() as tasks:

            async def answer() -> None:
                await self.handle_request(request, send)
                tasks.cancel_scope.cancel()

            # This way round, a body that has arrived with the head is there when the answer begins.
            tasks.start_soon(answer)
            await self.handle_messages(request, receive)
            tasks.cancel_scope.cancel()

    async def handle_messages(self, request: QuartRequest, receive: ASGIReceiveCallable) -> None:
        """Take the body and the end of a request, the body no faster than its handler if it is streamed."""

        async def receive_next() -> Any:
            await cast("HttpRequest", request).body.has_room()
            return await receive()

        await super().handle_messages(request, receive_next)

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        # Not a generator, which may be closed at any `yield`. In one plain call, the
        # subscription is a scope.
        if isinstance(response, LiveResponse):
            refusal = await response.send_all(send)
            if refusal is None:
                return
            refusal.headers.update(cors.cors_headers(response))
            response = refusal
        await super()._send_response(send, response)


class WebSocketConnection(ASGIWebsocketConnection):
    """One WebSocket."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Handle it until it is done or the client disconnects."""
        socket = self._create_websocket_from_scope(send)
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                await self.handle_messages(receive)
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            await self.handle_websocket(socket, send)
            tasks.cancel_scope.cancel()
