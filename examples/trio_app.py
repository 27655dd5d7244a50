"""Agents inside a trio application: a deadline that cancels a run and waits until its agent is gone.

python examples/trio_app.py
"""

import anyio
import trio

from agent_orchestrator import FunctionRunner, RunContext, open_embedded


async def think(context: RunContext) -> str:
    """An agent that takes as many seconds as its prompt says."""
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
            # A wait that was given up is not a run that was ended: that is asked for.
            await client.cancel_run(sent.run.id, reason="it took too long")
            run = (await client.wait_run(sent.run.id)).run
            print(run.status, run.result.text if run.result else None)


if __name__ == "__main__":
    trio.run(main)
