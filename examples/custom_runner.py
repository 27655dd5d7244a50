"""Your own runner: each message is a line for `sh`, and the session remembers its directory.

With an entry point, agentd can use it too: docs/writing-a-runner.md.

    python examples/custom_runner.py "cd /tmp" "pwd"
"""

import sys

import anyio
from attrs import frozen

from agent_orchestrator import AgentFailed, Invocation, Outcome, RunContext, open_embedded
from agent_orchestrator.runners.process import agent_process
from agent_orchestrator.runners.supervisor import UsesForkServer


@frozen
class Shell(UsesForkServer):
    name: str = "sh"

    async def run(self, context: RunContext) -> Outcome:
        cwd = str(context.thread.state["cwd"]) if context.thread else context.session.cwd
        argv = ["/bin/sh", "-c", f"{context.prompt}\necho; pwd"]
        # However the scope ends, it leaves no process behind.
        async with agent_process(
            argv, cwd=cwd, env=context.env, on_stderr=context.note_stderr
        ) as process:
            await context.report_process(process.pid, Invocation(argv[0], ("-c", "…"), cwd))
            await context.delivered()  # from now on the line may have an effect
            lines = [line.data.decode(errors="replace") async for line in process.lines()]
            code = await process.wait()
        if code:
            raise AgentFailed("provider_error", process.stderr_tail or f"exit code {code}")
        *said, cwd = [line for line in lines if line]
        for line in said:
            await context.emit("agent.message", {"text": line})
        await context.set_thread(context.session.id, {"cwd": cwd})
        return Outcome("\n".join(said), exit_code=code)


async def main(*lines: str) -> None:
    async with open_embedded(":memory:", runners=[Shell()]) as client:
        session = await client.create_session()
        for line in lines:
            sent = await client.send_message(session.id, line)
            assert sent.run is not None
            run = (await client.wait_run(sent.run.id)).run
            print(run.status, run.result.text if run.result else run.error)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: custom_runner.py LINE …   (each is given to sh)")
    anyio.run(lambda: main(*sys.argv[1:]))
