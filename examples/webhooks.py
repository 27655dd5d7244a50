"""A bridge: a web hook becomes a message, and the result of its run is posted. A delivery that is
repeated is handled once. Each result is posted at least once, also after a restart.
    WEBHOOK_SECRET=… python examples/webhooks.py https://chat.example/results 127.0.0.1:5001
"""

import hashlib
import hmac
import os
import sys

import anyio
import httpx
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, abort, request

from agent_orchestrator import Client, OrchestratorError, Unreachable, connect
from agent_orchestrator.operations.events import StreamItem, StreamRequest

SECRET, PLACE = os.environ.get("WEBHOOK_SECRET", "").encode(), anyio.Path("webhooks.cursor")


def make_app(client: Client) -> Quart:
    app = Quart(__name__)

    @app.post("/hooks/<topic>")
    async def hook(topic: str) -> tuple[str, int]:
        body, headers = await request.body, request.headers
        signature = f"sha256={hmac.new(SECRET, body, hashlib.sha256).hexdigest()}"
        if not hmac.compare_digest(signature, headers.get("X-Hub-Signature-256", "")):
            abort(401)
        session = await client.create_session(title=topic, idempotency_key=f"hooks/{topic}")
        key, text = headers["X-Delivery"], body.decode()
        await client.send_message(session.id, text, idempotency_key=key)
        return "", 202

    return app


async def post_ends(client: Client, target: str) -> None:
    asked = StreamRequest(cursor=await PLACE.read_text() if await PLACE.exists() else None)
    async with client.transport.subscribe(asked) as stream, httpx.AsyncClient() as http:
        while True:
            for item in await stream.receive():
                if isinstance(item, StreamItem) and item.event.event_type == "run.completed":
                    (await http.post(target, json=dict(item.event.data))).raise_for_status()
                await PLACE.write_text(item.cursor)


async def main(target: str, address: str, url: str = "http://127.0.0.1:8765") -> None:
    async with connect(url) as client:
        await client.status()  # raises here if there is no daemon
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post_ends, client, target)
            async with anyio.create_task_group() as own:  # hypercorn leaves its task cancelled
                own.start_soon(serve, make_app(client), Config.from_mapping(bind=[address]))
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    if not SECRET or len(sys.argv) < 3:
        sys.exit("usage: WEBHOOK_SECRET=… webhooks.py TARGET_URL ADDRESS [DAEMON_URL]")
    try:
        anyio.run(lambda: main(*sys.argv[1:]))
    except (Unreachable, OrchestratorError) as error:
        sys.exit(f"webhooks.py: {error}")
