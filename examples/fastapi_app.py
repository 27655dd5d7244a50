"""A FastAPI application that opens and closes the engine in its lifespan.

uvicorn --app-dir examples fastapi_app:app
curl -s localhost:8000/ask -H 'content-type: application/json' -d '{"text": "Hello"}'
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.runners.demo import DemoRunner


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Client]]:
    # Without `runners` the agent is codex.
    async with open_embedded("fastapi_app.db", runners=[DemoRunner()]) as client:
        yield {"client": client}


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    text: str


@app.post("/ask")
async def ask(question: Question, request: Request) -> dict[str, str | None]:
    client: Client = request.state.client
    session = await client.create_session()
    sent = await client.send_message(session.id, question.text)
    assert sent.run is not None  # a user's message always has one
    run = (await client.wait_run(sent.run.id, timeout_s=600)).run
    return {"status": run.status, "result": run.result.text if run.result else None}
