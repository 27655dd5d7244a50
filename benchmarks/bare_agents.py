"""The real agents on scripted models, each with the least client that can run its turns."""

import json
import platform
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream
from attrs import frozen

from agent_orchestrator.runners.acp.agents import AGENTS as ACP_AGENTS
from agent_orchestrator.runners.acp.process import INITIALIZE
from agent_orchestrator.runners.claude.launch import environment as claude_environment
from benchmarks.codex import NotMeasured, acknowledgement
from benchmarks.figures import check
from benchmarks.processes import ROOT, environment

sys.path += [str(ROOT / "tests" / name) for name in ("acp", "claude")]
from chat_model import ChatModel  # type: ignore[import-not-found]
from messages_server import MessagesServer, claude_env  # type: ignore[import-not-found]
from opencode_home import opencode_env  # type: ignore[import-not-found]

_MAX_LINE: Final = 2**26
_STOP_S: Final = 10.0

_MODULES: Final = ROOT / "tests" / "node_modules"
_MACHINE: Final = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


class BareAgent(ABC):
    """An agent's process with one conversation."""

    def __init__(self, process: anyio.abc.Process, work: Path, conversation: str | None) -> None:
        assert process.stdout
        assert process.stdin
        self._process = process
        self._stdin = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)
        self._work = work
        self.conversation = conversation

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        work: Path,
        conversation: str | None = None,
    ) -> AsyncIterator[Self]:
        """Start an agent until the scope ends.

        :param argv: how the gateway started its own.
        :param conversation: what it goes on with; None for a new one.
        """
        process = await anyio.open_process(
            cls.arguments(argv, conversation),
            env=env,
            cwd=work,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # as the gateway does: a session has a share of the processors
        )
        agent = cls(process, work, conversation)
        try:
            await agent.greet()
            yield agent
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError), anyio.move_on_after(_STOP_S):
                    process.terminate()
                    await process.wait()
                with suppress(ProcessLookupError):
                    process.kill()
                await process.aclose()

    @classmethod
    @abstractmethod
    def arguments(cls, argv: Sequence[str], conversation: str | None) -> Sequence[str]:
        """Return the arguments for a conversation."""

    @abstractmethod
    async def greet(self) -> None:
        """Make it ready for a prompt."""

    @abstractmethod
    async def answer(self, prompt: str) -> str:
        """Send a prompt and return the answer."""

    async def turn(self, prompt: str) -> float:
        """Return the seconds a turn took."""
        started = time.perf_counter()
        answer = await self.answer(prompt)
        seconds = time.perf_counter() - started
        check(answer == acknowledgement(prompt), f"the agent alone answered {answer!r}")
        return seconds

    async def say(self, message: Mapping[str, Any]) -> None:
        await self._stdin.send(json.dumps(message).encode() + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield json.loads(await self._lines.receive_until(b"\n", _MAX_LINE))


class BareClaude(BareAgent):
    """Claude Code in its stream-json mode."""

    @classmethod
    def arguments(cls, argv: Sequence[str], conversation: str | None) -> Sequence[str]:
        words = list(argv)
        place = words.index("--session-id" if "--session-id" in words else "--resume")
        words[place : place + 2] = (
            ["--session-id", str(uuid.uuid4())]
            if conversation is None
            else ["--resume", conversation]
        )
        return words

    async def greet(self) -> None:
        request = {"subtype": "initialize", "hooks": {}}
        await self.say({"type": "control_request", "request_id": "1", "request": request})
        async for said in self.messages():
            if said["type"] == "control_response":
                check(said["response"]["subtype"] == "success", f"Claude Code answered {said}")
                return

    async def answer(self, prompt: str) -> str:
        message = {"role": "user", "content": [{"type": "text", "text": prompt}]}
        more = {"parent_tool_use_id": None, "session_id": "", "uuid": str(uuid.uuid4())}
        await self.say({"type": "user", "message": message, **more})
        async for said in self.messages():
            if said["type"] == "result":
                check(said["is_error"] is False, f"Claude Code's turn failed: {said}")
                self.conversation = said["session_id"]
                return str(said["result"])
        raise AssertionError


class BareAcp(BareAgent):
    """An agent that speaks ACP."""

    _number = 0

    @classmethod
    def arguments(cls, argv: Sequence[str], _conversation: str | None) -> Sequence[str]:
        return argv

    async def greet(self) -> None:
        able = (await self._call("initialize", INITIALIZE))[0]["agentCapabilities"]
        where: dict[str, Any] = {"cwd": str(self._work), "mcpServers": []}
        if self.conversation is None:
            answer, _ = await self._call("session/new", where)
            self.conversation = answer["sessionId"]
        else:
            resumes = "resume" in able.get("sessionCapabilities", {})
            where["sessionId"] = self.conversation
            await self._call("session/resume" if resumes else "session/load", where)

    async def answer(self, prompt: str) -> str:
        text = [{"type": "text", "text": prompt}]
        params = {"sessionId": self.conversation, "prompt": text}
        result, answer = await self._call("session/prompt", params)
        check(result["stopReason"] == "end_turn", f"the turn ended with {result}")
        return answer

    async def _call(self, method: str, params: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the result, and the text of the agent's messages before it."""
        self._number += 1
        await self.say({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        text = ""
        async for said in self.messages():
            if said.get("id") == self._number and "method" not in said:
                check("result" in said, f"the agent answered {said}")
                return said["result"], text
            if said.get("method") == "session/update":
                update = said["params"]["update"]
                if update["sessionUpdate"] == "agent_message_chunk":
                    text += update["content"]["text"]
        raise AssertionError


@frozen
class RealAgent:
    """A real agent, and how it is run.

    :param process: the name of its process.
    :param server: the scripted model it talks to.
    :param variables: the environment with which it uses the model at a port, from a home directory.
    :param complete: adds what the gateway adds to the environment of its process.
    :param command: the setting of its provider that names its program.
    """

    name: str
    process: str
    program: Path
    runner: str
    server: Callable[[], Any]
    variables: Callable[[Path, int], Mapping[str, str]]
    complete: Callable[[dict[str, str]], Mapping[str, str]]
    command: Callable[[str], str]
    bare: type[BareAgent]

    def provider(self, home: Path, port: int, *, name: str | None = None, more: str = "") -> str:
        """Return the configuration of a provider with the model at this port.

        :raises NotMeasured: if the agent is not installed.
        """
        values = ", ".join(f"{k} = {json.dumps(v)}" for k, v in self._prepared(home, port).items())
        return (
            f'[providers.{name or self.name}]\nrunner = "{self.runner}"\n'
            f"{self.command(self.found())}\nenv = {{ set = {{ {values} }} }}\n{more}\n"
        )

    def found(self) -> str:
        """Return its program.

        :raises NotMeasured: if it is not installed.
        """
        if not self.program.exists():
            raise NotMeasured(f"{self.name} is not installed; run: bin/setup agents")
        return str(self.program)

    def alone(self, home: Path, port: int) -> Mapping[str, str]:
        """Return the environment for the agent without the gateway."""
        return self.complete({**environment(), **self._prepared(home, port)})

    def _prepared(self, home: Path, port: int) -> Mapping[str, str]:
        home.mkdir(parents=True, exist_ok=True)
        return self.variables(home, port)


REAL_AGENTS: Final = (
    RealAgent(
        name="claude",
        process="claude",
        program=_MODULES / "@anthropic-ai" / f"claude-code-linux-{_MACHINE}" / "claude",
        runner="claude",
        server=MessagesServer,
        variables=claude_env,
        complete=lambda env: claude_environment(env, None),
        command=lambda program: f"command = {json.dumps(program)}",
        bare=BareClaude,
    ),
    RealAgent(
        name="opencode",
        process="opencode",
        program=_MODULES / f"opencode-linux-{_MACHINE}" / "bin" / "opencode",
        runner="acp",
        server=ChatModel,
        variables=opencode_env,
        complete=lambda env: {**env, **ACP_AGENTS["opencode"].env},
        command=lambda program: f"argv = {json.dumps([program, 'acp'])}",
        bare=BareAcp,
    ),
)
