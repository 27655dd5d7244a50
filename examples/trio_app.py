"""Agents in a trio application: cancel a run after a time limit and wait for its end.

python examples/trio_app.py
"""

import anyio
import trio

from agent_orchestrator import FunctionRunner, RunContext, open_embedded


async def think(context: RunContext) -> str:
    """An agent that sleeps for the seconds that its prompt says."""
    await context.emit("agent.message", {"text": f"thinking for {context.prompt} s"})
    await anyio.sleep(float(context.prompt))
    return "thought it over"


async def main() -> None:
    async with open_embedded(":memory:", runners=[FunctionRunner("think", think)]) as client:
        session = await client.create_session()
        for seconds in ("0.1", "3600"):
            sent = await client.send_message(session.id, seconds)
            assert sent.run is not None
            with trio.move_on_after(1):
                await client.wait_run(sent.run.id, timeout_s=60)
            # The end of the wait does not end the run, so cancel the run too.
            await client.cancel_run(sent.run.id, reason="it took too long")
            run = (await client.wait_run(sent.run.id)).run
            print(run.status, run.result.text if run.result else None)


if __name__ == "__main__":
    trio.run(main)
