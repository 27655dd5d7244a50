"""A web application without a daemon: the engine, a page and an event stream in one process.
python examples/quart_app.py        # then open http://127.0.0.1:5000
"""

import json
import sys
from collections.abc import AsyncIterator

import anyio
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, Response, request

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.runners.demo import DemoRunner

PAGE = """<!doctype html><title>Ask</title><form><input name=text> <button>Ask</button></form><pre></pre>
<script>document.querySelector("form").onsubmit = async (event) => {
  event.preventDefault()
  const answer = await fetch("ask", {method: "POST", body: new FormData(event.target)})
  const source = new EventSource("said/" + (await answer.json()).session)
  source.onmessage = (said) => document.querySelector("pre").append(JSON.parse(said.data), "\\n")
  source.addEventListener("end", () => source.close()) }</script>"""


async def frames(client: Client, session_id: str) -> AsyncIterator[str]:
    """Yield the events that the page shows, as server-sent events."""
    async with client.events(session_id, follow=True) as events:
        async for event in events:
            if event.event_type == "agent.message":
                yield f"data: {json.dumps(event.data['text'])}\n\n"
            elif event.event_type in ("run.completed", "run.failed"):
                yield "event: end\ndata:\n\n"


async def main(address: str = "127.0.0.1:5000") -> None:
    app, opening = Quart(__name__), open_embedded("quart_app.db", runners=[DemoRunner()])
    async with opening as client, anyio.create_task_group() as tasks:

        @app.get("/")
        async def page() -> str:
            return PAGE

        @app.post("/ask")
        async def ask() -> dict[str, str]:
            session = await client.create_session()
            await client.send_message(session.id, (await request.form)["text"])
            return {"session": session.id}

        @app.get("/said/<session_id>")
        async def said(session_id: str) -> Response:
            return Response(frames(client, session_id), content_type="text/event-stream")

        # In a separate task, because hypercorn leaves its task cancelled.
        tasks.start_soon(serve, app, Config.from_mapping(bind=[address]))


if __name__ == "__main__":
    anyio.run(lambda: main(*sys.argv[1:]))
