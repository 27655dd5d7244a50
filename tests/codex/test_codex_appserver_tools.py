"""The orchestration tools as an app-server's agents reach them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import pytest

from agent_orchestrator.runners.codex.appserver.dynamic_tools import DynamicTools

pytestmark = pytest.mark.anyio


class Gathering(BaseHTTPRequestHandler):
    """Answers no call before all have come."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.all.wait()
        result = {"content": [{"type": "text", "text": "all are there"}]}
        answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


class Daemon(ThreadingHTTPServer):
    request_queue_size = 200


async def test_the_tools_of_many_agents_wait_for_each_other():
    count = 150
    server = Daemon(("127.0.0.1", 0), Gathering)
    server.all = threading.Barrier(count)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {
        "AGENTCTL_URL": f"http://127.0.0.1:{server.server_port}",
        "AGENTCTL_AUTH_TOKEN": "art_x",
    }
    tools, answers = DynamicTools(), []

    async def call():
        answers.append(await tools.call(env, {"tool": "session_wait", "arguments": {}}))

    try:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(count):
                    tasks.start_soon(call)
    finally:
        await tools.close()
        server.all.abort()
        server.shutdown()
        server.server_close()
    assert [answer["success"] for answer in answers] == [True] * count
