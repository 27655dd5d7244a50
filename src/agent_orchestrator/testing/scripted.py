"""A runner for tests. Its prompts are scripts."""

from collections.abc import Mapping
from typing import Any, Final

import anyio
from attrs import evolve, field, frozen

from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Run, Session, Thread, Usage
from agent_orchestrator.operations.takeovers import Program
from agent_orchestrator.ports.runner import Conversation, Handover, Outcome, RunContext

PROVIDER: Final = "scripted"


@frozen
class ScriptedRunner:
    """Executes a prompt line by line. The result is the last text.

    ============================  ====================================================================
    line                          effect
    ============================  ====================================================================
    ``say TEXT``                  emits an ``agent.message``
    ``count N``                   emits N messages, ``1`` … ``N``
    ``nest N``                    emits an ``agent.message`` whose data has N levels of objects
    ``tool NAME``                 emits the start and the end of a tool call
    ``thread ID``                 sets the thread id
    ``which``                     says the id of the given thread, or ``none``
    ``usage IN OUT``              reports token counts
    ``hold``                      runs forever
    ``steered``                   accepts one message while running, and says it
    ``ask TEXT``                  asks for approval, waits, and says the outcome
    ``spawn TASK``                spawns a child; ``;`` in the task is a line break
    ``send TEXT``                 sends a message to the last child
    ``wait``                      waits for the last run it created, and says its result
    ``fail CODE MESSAGE``         fails
    ``crash``                     raises an unexpected exception
    anything else                 says the line
    ============================  ====================================================================
    """

    name: str = PROVIDER
    resumes: bool = True
    """Whether it reports the capability to resume threads."""
    prompts: list[str] = field(factory=list)
    """All prompts in the order of their runs."""
    record: list[str] = field(factory=list)
    """What people said in the agent's own program, which repeats it."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resumes, steer=True, ask=True)

    async def run(self, context: RunContext) -> Outcome:
        self.prompts.append(context.prompt)
        await context.delivered()
        last_text = ""
        runs: list[Run] = []
        for line in context.prompt.splitlines():
            last_text = await _execute_line(line, context, runs) or last_text
        return Outcome(last_text)

    async def hand_over(
        self,
        session: Session,
        thread: Thread,
        env: Mapping[str, str],  # noqa: ARG002
    ) -> Handover:
        program = Program(("agent", "--resume", thread.id), session.cwd, {"AGENT_HOME": "/agent"})
        return Handover(program, evolve(thread, state={_PLACE: len(self.record)}))

    async def find_conversation(
        self,
        thread_id: str | None,
        cwd: str,
        env: Mapping[str, str],  # noqa: ARG002
    ) -> Conversation:
        if thread_id == "unknown":
            raise AgentFailed("thread_missing", "there is no such conversation")
        return Conversation(Thread(thread_id or "latest", {_PLACE: 0}), cwd, "recorded-model")

    async def read_record(self, context: RunContext) -> Outcome:
        assert context.thread is not None
        thread, text = context.thread, ""
        for place in range(thread.state[_PLACE], len(self.record)):
            text = self.record[place]
            data = {"text": text, "recorded_at": None}
            await context.emit(EventType.USER_MESSAGE, data)
            await context.emit(EventType.AGENT_MESSAGE, data)
            await context.set_thread(thread.id, {_PLACE: place + 1})
            if text == "hold":
                await anyio.sleep_forever()
        return Outcome(text)


_PLACE: Final = "place"


async def _execute_line(line: str, context: RunContext, runs: list[Run]) -> str | None:
    verb, _, argument = line.partition(" ")
    match verb:
        case "count":
            for number in range(1, int(argument) + 1):
                await _say(context, str(number))
            return argument
        case "nest" | "tool":
            return await _emit(verb, argument, context)
        case "thread":
            await context.set_thread(argument)
            return None
        case "which":
            return await _say(context, context.thread.id if context.thread else "none")
        case "usage":
            tokens_in, tokens_out = argument.split()
            await context.report_usage(
                Usage(input_tokens=int(tokens_in), output_tokens=int(tokens_out))
            )
            return None
        case "hold":
            await _say(context, "holding")
            await anyio.sleep_forever()
        case "steered":
            async with context.steering() as messages:
                await _say(context, "listening")
                return await _say(context, await anext(messages))
        case "ask" | "spawn" | "send" | "wait":
            return await _cooperate(verb, argument, context, runs)
        case "fail":
            code, _, message = argument.partition(" ")
            raise AgentFailed(code, message)
        case "crash":
            raise RuntimeError("the script says so")
    return await _say(context, argument if verb == "say" else line)


async def _cooperate(verb: str, argument: str, context: RunContext, runs: list[Run]) -> str | None:
    match verb:
        case "spawn":
            runs.append((await context.spawn(argument.replace(";", "\n"))).run)
            return None
        case "send":
            sent = (await context.send(runs[-1].session_id, argument)).run
            runs += [] if sent is None else [sent]
            return None
        case "wait":
            run = (await context.wait(runs[-1].id)).run
            return await _say(context, run.result.text if run.result else run.status)
    request = await context.ask_parent(argument, kind="approval_request")
    return await _say(context, f"{request.status} {request.answer or ''}".strip())


async def _emit(verb: str, argument: str, context: RunContext) -> str | None:
    if verb == "nest":
        data: dict[str, Any] = {"text": argument}
        for _ in range(int(argument) - 1):
            data = {"text": argument, "more": data}
        await context.emit(EventType.AGENT_MESSAGE, data)
        return argument
    call = {"tool_id": "t1", "kind": "function", "name": argument, "input": {}}
    await context.emit(EventType.TOOL_STARTED, call)
    done = {"status": "completed", "output": "done"}
    await context.emit(EventType.TOOL_COMPLETED, call | done)
    return None


async def _say(context: RunContext, text: str) -> str:
    await context.emit(EventType.AGENT_MESSAGE, {"text": text})
    return text
