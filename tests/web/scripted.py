"""A scripted agent: agentd loads it as the function of a provider.

A session's metadata has the script: a list of steps, each a list of its name and arguments. A longer
script is in a file.
"""

import json

import anyio
import attrs

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Usage
from agent_orchestrator.operations.options import AskOptions
from agent_orchestrator.ports.runner import Outcome, RunContext
from agent_orchestrator.wire import codec


async def play(context: RunContext) -> Outcome | str:
    """Play the script of the session, or repeat the message if there is none."""
    await context.delivered()
    script = context.session.metadata.get("script")
    if not script:
        return f"You said: {context.prompt}"
    if script[0][0] == "read":
        script = json.loads(await anyio.Path(script[0][1]).read_text())
    for name, *arguments in script:
        match name:
            case "emit":
                await context.emit(*arguments)
            case "ask":
                question = codec.command(AskOptions, dict(arguments[0]))
                await context.ask_parent(**attrs.asdict(question, recurse=False))
            case "usage":
                await context.report_usage(Usage(**arguments[0]))
            case "sleep":
                await anyio.sleep(arguments[0])
            case "file":
                await _wait_for(arguments[0])
            case "many":
                for number in range(arguments[0]):
                    await context.emit(
                        "agent.message", {"text": f"message {number}", "item_id": str(number)}
                    )
            case "deltas":
                await _deltas(context, *arguments)
            case "steerable":
                async with context.steering():  # takes messages, and reads none
                    await _wait_for(arguments[0])
            case "steering":
                async with context.steering() as messages:
                    async for text in messages:
                        await context.emit("agent.message", {"text": f"Understood: {text}"})
                        break
            case "fail":
                raise AgentFailed(*arguments)
            case "end":
                return Outcome(arguments[0])
            case _:
                raise ValueError(name)
    return Outcome("")


async def _wait_for(file: str) -> None:
    while not await anyio.Path(file).exists():
        await anyio.sleep(0.01)


async def _deltas(context: RunContext, count: int, pause_s: float, end: str = "") -> None:
    """Stream a text of so many words.

    :param end: a file; the text is complete once that exists.
    """
    words = [f"word{number}" + ("\n\n" if number % 60 == 59 else " ") for number in range(count)]
    for word in words:
        await context.emit("agent.message.delta", {"text": word, "item_id": "long"})
        await anyio.sleep(pause_s)
    if end:
        await _wait_for(end)
    await context.emit("agent.message", {"text": "".join(words), "item_id": "long"})
