"""The tools of a run for agents that start an MCP server as a command."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream

from agent_orchestrator.ports.runner import ToolResult
from agent_orchestrator.runners import tool_server as module
from agent_orchestrator.runners.tool_server import (
    MAX_CALLS,
    MAX_CONNECTIONS,
    MAX_MESSAGE,
    ToolServer,
    tool_server,
)
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = pytest.mark.anyio

HELLO = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "7"}}


class Waiting:
    """Tools that never answer, and the calls that wait."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.canceled: list[str] = []

    def list(self):
        return ()

    def holding(self, seconds):
        return self

    async def call(self, name, arguments):
        self.calls.append(name)
        try:
            await anyio.sleep_forever()
        finally:
            self.canceled.append(name)


class Line:
    """A connection as an agent's program has it."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.received = BufferedByteReceiveStream(stream)

    async def send(self, *messages: Any) -> None:
        lines = [one if isinstance(one, str) else json.dumps(one) for one in messages]
        await self.stream.send("".join(f"{line}\n" for line in lines).encode())

    async def take(self) -> Any:
        with anyio.fail_after(30):
            return json.loads(await self.received.receive_until(b"\n", 100 * 2**20))

    async def is_closed(self) -> bool:
        with anyio.fail_after(30):
            try:
                return not await self.received.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return True


@asynccontextmanager
async def connected(server: ToolServer, key: str | None = None) -> AsyncIterator[Line]:
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        line = Line(stream)
        with suppress(anyio.BrokenResourceError):
            await line.send(server.key if key is None else key)
        yield line


def call(number: int | str, name: str = "session_list", **arguments: Any) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def own_tools():
    return RecordingContext("x", cwd="/").tools


async def test_a_program_reaches_the_tools_of_its_run():
    tools = own_tools()
    async with tool_server(tools) as server:
        assert not any(server.key in part for part in server.argv)
        env = {"PATH": os.environ["PATH"], **server.env}
        asks = [HELLO, {"jsonrpc": "2.0", "method": "notifications/initialized"}]
        asks += [{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, call(2), call("3", "nothing")]
        text = "".join(f"{json.dumps(one)}\n" for one in asks)
        async with await anyio.open_process(server.argv, env=env, stderr=None) as program:
            await program.stdin.send(text.encode())
            answers = BufferedByteReceiveStream(program.stdout)
            with anyio.fail_after(30):
                found = [json.loads(await answers.receive_until(b"\n", 2**20)) for _ in range(4)]
                await program.stdin.aclose()
                assert await program.wait() == 0
        assert server.is_used
    by_id = {one["id"]: one["result"] for one in found}
    assert by_id[0]["protocolVersion"] == "7"
    assert [one["name"] for one in by_id[1]["tools"]] == [spec.name for spec in tools.list()]
    assert by_id[2]["structuredContent"]["children"] == []
    assert json.loads(by_id[2]["content"][0]["text"]) == by_id[2]["structuredContent"]
    assert by_id["3"]["isError"]


@pytest.mark.parametrize("key", ["", "wrong", "x" * 100_000, json.dumps(HELLO), "\0", "é"])
async def test_without_the_key_there_is_no_answer(key):
    async with tool_server(own_tools()) as server, connected(server, key) as line:
        with suppress(anyio.BrokenResourceError):  # it may be closed already
            await line.send(HELLO)
        assert await line.is_closed()
        assert not server.is_used


async def test_a_connection_that_says_nothing_is_closed(monkeypatch):
    monkeypatch.setattr(module, "KEY_S", 0.05)
    async with tool_server(own_tools()) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            assert await Line(stream).is_closed()
        assert not server.is_used


@pytest.mark.parametrize(
    "text",
    ["no JSON", "[]", "7", '"text"', '{"half": ', "\ufeff{}", "[" * 10_000],
)
async def test_what_is_no_message_is_refused_and_the_next_one_is_answered(text):
    async with tool_server(own_tools()) as server, connected(server) as line:
        await line.send(text, HELLO)
        refused = await line.take()
        assert refused["error"]["code"] == -32600
        assert (await line.take())["id"] == 0


async def test_a_message_that_is_too_long_is_refused():
    async with tool_server(own_tools()) as server, connected(server) as line:
        await line.send(call(1, pad="x" * MAX_MESSAGE), HELLO)
        assert "at most" in (await line.take())["error"]["message"]
        assert (await line.take())["id"] == 0


@pytest.mark.parametrize(
    "message",
    [
        {"id": 1},
        {"method": 7},
        {"method": "tools/call"},
        {"method": "notifications/cancelled"},
        {"method": "notifications/cancelled", "params": {"requestId": []}},
        {"id": [], "result": {}},
        {"id": 5, "error": {}},
    ],
)
async def test_what_needs_no_answer_has_no_effect(message):
    async with tool_server(own_tools()) as server, connected(server) as line:
        await line.send(message, HELLO)
        assert (await line.take())["id"] == 0


async def test_unknown_methods_and_invalid_calls_are_errors():
    async with tool_server(own_tools()) as server, connected(server) as line:
        await line.send({"id": 1, "method": "resources/list"})
        assert (await line.take())["error"]["code"] == -32601
        await line.send({"id": 2, "method": "tools/call"})
        assert (await line.take())["result"]["isError"]
        await line.send(
            {"id": 3, "method": "tools/call", "params": {"name": ["x"], "arguments": 7}}
        )
        assert (await line.take())["result"]["isError"]


async def test_a_call_that_waits_is_canceled_by_its_id():
    tools = Waiting()
    async with tool_server(tools) as server, connected(server) as line:
        await line.send(call(1, "first"), call(2, "second"))
        await line.send({"method": "notifications/cancelled", "params": {"requestId": 1}}, HELLO)
        assert (await line.take())["id"] == 0
        with anyio.fail_after(30):
            while tools.canceled != ["first"]:
                await anyio.sleep(0.01)
        assert tools.calls == ["first", "second"]


async def test_an_agent_that_is_killed_does_not_disturb_the_run():
    """The system then resets its connections."""
    tools = Waiting()
    async with tool_server(tools) as server:
        for sends in (HELLO, call(1)):
            async with connected(server) as line:
                await line.send(*[sends] * 50)
                while sends is not HELLO and not tools.calls:
                    await anyio.sleep(0.01)
                raw = line.stream.extra(SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            raw = stream.extra(SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with anyio.fail_after(30):
            while len(tools.canceled) < 50:
                await anyio.sleep(0.01)
        async with connected(server) as line:
            await line.send(HELLO)
            assert (await line.take())["id"] == 0


@pytest.mark.parametrize("end", ["connection", "scope"])
async def test_calls_end_with_their_connection_and_with_the_run(end):
    tools = Waiting()
    with anyio.fail_after(30):
        async with tool_server(tools) as server, connected(server) as line:
            await line.send(call(1))
            while not tools.calls:
                await anyio.sleep(0.01)
            if end == "connection":
                await line.stream.aclose()
                while not tools.canceled:
                    await anyio.sleep(0.01)
    assert tools.canceled == ["session_list"]


async def test_the_number_of_calls_is_limited():
    tools = Waiting()
    async with tool_server(tools) as server, connected(server) as line:
        await line.send(*(call(number) for number in range(MAX_CALLS + 1)))
        refused = await line.take()
        assert refused["id"] == MAX_CALLS
        assert str(MAX_CALLS) in refused["error"]["message"]
        assert len(tools.calls) == MAX_CALLS


async def test_the_number_of_connections_is_limited():
    async with tool_server(own_tools()) as server:
        async with anyio.create_task_group() as tasks:

            async def stay(*, task_status: Any) -> None:
                async with connected(server) as line:
                    await line.send(HELLO)
                    await line.take()
                    task_status.started()
                    await anyio.sleep_forever()

            for _ in range(MAX_CONNECTIONS):
                await tasks.start(stay)
            async with connected(server) as one_more:
                assert await one_more.is_closed()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(30):
            while True:  # the server has yet to see that they are closed
                async with connected(server) as line:
                    try:
                        await line.send(HELLO)
                        assert (await line.take())["id"] == 0
                        return
                    except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                        await anyio.sleep(0.01)


async def test_a_long_answer_arrives_whole():
    class Long(Waiting):
        async def call(self, name, arguments):
            text = "é\n" * 2_000_000
            return ToolResult({"text": text}, json.dumps({"text": text}))

    async with tool_server(Long()) as server, connected(server) as line:
        await line.send(call(1))
        assert len((await line.take())["result"]["structuredContent"]["text"]) == 4_000_000


async def test_an_error_of_the_run_is_raised_as_it_is():
    with pytest.raises(LookupError, match="mine"):
        async with tool_server(own_tools()):
            raise LookupError("mine")


async def test_the_program_ends_when_the_run_has_ended():
    async with tool_server(own_tools()) as server:
        program = await anyio.to_thread.run_sync(
            lambda: subprocess.Popen(
                server.argv, env=dict(server.env), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        with anyio.fail_after(30):
            while not server.is_used:
                await anyio.sleep(0.01)
    with program:
        assert await anyio.to_thread.run_sync(program.wait, 30) == 0


def test_the_program_imports_the_standard_library_only():
    loads = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    path = module.tool_pipe.__file__
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", loads, path], capture_output=True, text=True, check=True
    )
    assert not {"anyio", "attr", "agent_orchestrator"} & set(done.stdout.split())
    assert socket.__name__ in done.stdout.split()
