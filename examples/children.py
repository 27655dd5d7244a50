"""A parent agent gives parts of its task to children. One child needs approval from a person.

python examples/children.py "look at the cache, delete the cache"
"""

import sys

import anyio

from agent_orchestrator import Client, FunctionRunner, RunContext, open_embedded


async def worker(context: RunContext) -> str:
    if not context.prompt.startswith("delete"):
        return f"did: {context.prompt}"
    asked = await context.ask_parent(f"May I {context.prompt}?", kind="approval_request")
    return f"did: {context.prompt}" if asked.status == "approved" else f"left: {context.prompt}"


async def lead(context: RunContext) -> str:
    children = [
        # With the key, a repeated attempt finds its child. ask-human: a person decides.
        await context.spawn(
            part, provider="worker", title=part, approvals="ask-human", idempotency_key=part
        )
        for part in context.prompt.split(", ")
    ]
    runs = [(await context.wait(child.run.id)).run for child in children]
    return "; ".join(run.result.text if run.result else run.status for run in runs)


async def decide(client: Client) -> None:
    """Play the person: approve every request."""
    async with client.events(follow=True) as events:
        async for event in events:
            asked = event.data
            # The logs of the child's ancestors have copies of this event.
            if event.event_type == "request.created" and asked["session_id"] == event.session_id:
                print("asked:", asked["text"])
                await client.resolve_request(asked["id"], "approve")


async def main(task: str = "look at the cache, delete the cache") -> None:
    runners = [FunctionRunner("lead", lead), FunctionRunner("worker", worker)]
    async with (
        open_embedded(":memory:", runners=runners) as client,
        anyio.create_task_group() as tg,
    ):
        tg.start_soon(decide, client)
        session = await client.create_session()
        sent = await client.send_message(session.id, task)
        assert sent.run is not None
        run = (await client.wait_run(sent.run.id)).run
        print(run.status, run.result.text if run.result else run.error)
        tg.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(lambda: main(*sys.argv[1:]))
