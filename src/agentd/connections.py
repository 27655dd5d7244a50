"""The web framework's connections, made structured.

Quart ends a request whose client left by cancelling its task from outside, which no scope inside
can hold off: what runs in a thread meanwhile (a look into the store) would be left to itself. Here
the request runs in a scope that the client's leaving cancels.
"""

import anyio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.asgi import ASGIHTTPConnection, ASGIWebsocketConnection
from quart.typing import ResponseTypes

from agentd import cors
from agentd.responses import LiveResponse


class HttpConnection(ASGIHTTPConnection):
    """One request."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Handle it, until it is answered or its client leaves."""
        request = self._create_request_from_scope(send)
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                await self.handle_messages(request, receive)
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            await self.handle_request(request, send)
            tasks.cancel_scope.cancel()

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        # A stream written as a generator would be closed from wherever it stands still; as one
        # plain call, its subscription is a scope that ends with it.
        if isinstance(response, LiveResponse):
            instead = await response.send_all(send)
            if instead is None:
                return
            instead.headers.update(cors.cors_headers(response))
            response = instead
        await super()._send_response(send, response)


class WebSocketConnection(ASGIWebsocketConnection):
    """One WebSocket."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Handle it, until it is done or its client leaves."""
        socket = self._create_websocket_from_scope(send)
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                await self.handle_messages(receive)
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            await self.handle_websocket(socket, send)
            tasks.cancel_scope.cancel()
