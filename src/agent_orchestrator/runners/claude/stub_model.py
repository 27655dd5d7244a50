"""A model for the self-test: it calls a tool once, then ends its turn. It listens on this machine only."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from attrs import define, field

_MAX_HEAD: Final = 64 * 2**10
_MAX_BODY: Final = 16 * 2**20


@define(eq=False)
class StubModel:
    """The model.

    :param tool: the name of the tool that it asks for.
    :ivar results: the results of the tool that it was given.
    """

    tool: str
    tool_input: Mapping[str, Any]
    port: int = field(default=0, init=False)
    results: list[Mapping[str, Any]] = field(factory=list, init=False)

    async def serve(self, connection: SocketStream) -> None:
        """Answer the request of a connection."""
        async with connection:
            try:
                body = await _body(connection)
                await connection.send(self._response(body))
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the client has gone
            except (anyio.IncompleteRead, anyio.DelimiterNotFound, ValueError):
                pass  # not a request to a model

    def _response(self, body: Mapping[str, Any]) -> bytes:
        messages = body.get("messages")
        if not isinstance(messages, list) or not body.get("stream"):
            return _http("application/json", b"{}")
        results = [block for message in messages for block in _results(message)]
        self.results += results
        if results or not body.get("tools"):
            block: dict[str, Any] = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": "done"}
            reason = "end_turn"
        else:
            block = {"type": "tool_use", "id": "toolu_self_test", "name": self.tool, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(self.tool_input)}
            reason = "tool_use"
        return _http("text/event-stream", _stream(block, delta, reason, str(body.get("model"))))


@asynccontextmanager
async def stub_model(tool: str, tool_input: Mapping[str, Any]) -> AsyncIterator[StubModel]:
    """Serve a model on a free port of this machine.

    :raises OSError: if there is none.
    """
    model = StubModel(tool, tool_input)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        model.port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - no query of Django's
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, model.serve)
            yield model
            tasks.cancel_scope.cancel()


async def _body(connection: SocketStream) -> Mapping[str, Any]:
    stream = BufferedByteReceiveStream(connection)
    head = await stream.receive_until(b"\r\n\r\n", _MAX_HEAD)
    size = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            size = min(int(value), _MAX_BODY)
    found = json.loads(await stream.receive_exactly(size)) if size else {}
    return found if isinstance(found, dict) else {}


def _results(message: Any) -> Sequence[Mapping[str, Any]]:
    content = message.get("content") if isinstance(message, dict) else None
    return [
        block
        for block in (content if isinstance(content, list) else ())
        if isinstance(block, dict) and block.get("type") == "tool_result"
    ]


def _http(media_type: str, data: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {len(data)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + data


def _stream(block: Mapping[str, Any], delta: Mapping[str, Any], reason: str, model: str) -> bytes:
    usage = {"input_tokens": 1, "output_tokens": 1}
    message: dict[str, Any] = {
        "id": "msg_self_test",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": 1},
        },
        {"type": "message_stop"},
    ]
    return "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events).encode()
