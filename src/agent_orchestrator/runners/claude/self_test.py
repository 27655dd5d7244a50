"""The self-test: it checks that an installed Claude Code asks before it uses a tool.

It runs once for each version, before the first turn. Claude Code gets the same arguments as for a turn, and an empty
directory to work in. The model is a :class:`~agent_orchestrator.runners.claude.stub_model.StubModel`, so nothing leaves
this machine. A version that does not ask gets no turn.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import anyio
from attrs import define, evolve, field, frozen

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.hosts import current_host
from agent_orchestrator.ports.runner import CANNOT_ASK, Availability
from agent_orchestrator.runners.claude import approvals
from agent_orchestrator.runners.claude.driver import user_message
from agent_orchestrator.runners.claude.launch import Spec, environment, permission_mode
from agent_orchestrator.runners.claude.locate import locate
from agent_orchestrator.runners.claude.probe import VERSIONS, Probe
from agent_orchestrator.runners.claude.process import ClaudeProcess
from agent_orchestrator.runners.claude.protocol import LIFECYCLE, PROTOCOL
from agent_orchestrator.runners.claude.stub_model import StubModel, stub_model
from agent_orchestrator.runners.live.messages import AgentRequest, Notification
from agent_orchestrator.runners.program import NotInstalled

_TEST_S: Final = 60.0
"""Seconds for the test. It usually takes 1.5 s."""

_FILE: Final = "used-without-asking"
_TOOL: Final = "Bash"
_INPUT: Final = {"command": f"sh -c 'echo > {_FILE}'"}
_WORDS: Final = "the self-test denies this"

_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE")
"""The variables of a provider that the self-test uses. Others could select another model."""


@frozen
class Version:
    """A version of Claude Code, as a program with its time of modification."""

    program: str
    modified_ns: int
    name: str


_PASSED: Final[set[Version]] = set()
"""Those that have passed, for all runners of this process."""


@define(eq=False)
class SelfTest:
    """Tests versions of Claude Code, and remembers the refused ones."""

    _refusals: dict[str, str] = field(factory=dict, init=False)
    _lock: anyio.Lock | None = field(default=None, init=False)

    def refusal(self, version: str | None) -> str | None:
        """Return why a version is refused; None if it has passed or was not tested yet."""
        return self._refusals.get(version or "")

    async def require(self, spec: Spec, version: Version) -> None:
        """Test the program of a run, unless its version has passed.

        :raises AgentFailed: ``provider_unavailable``, if it does not ask, or cannot be tested.
        """
        if version in _PASSED:
            return
        self._lock = self._lock or anyio.Lock()
        async with self._lock:
            if version in _PASSED:
                return
            if (refusal := self.refusal(version.name)) is None:
                problem, is_known = await _problem(spec)
                if problem is None:
                    _PASSED.add(version)
                    return
                refusal = (
                    f"{CANNOT_ASK}: the self-test of Claude Code {version.name} failed: {problem}"
                )
                if is_known:
                    self._refusals[version.name] = refusal
        raise AgentFailed("provider_unavailable", refusal)


def supported(command: str, env: Mapping[str, str], probe: Probe) -> Version:
    """Return the version of a command. Blocks.

    :raises AgentFailed: ``provider_unavailable``, if it is not a supported one.
    """
    try:
        program = locate(command, env)
        version = probe.version(program, env)
    except NotInstalled as problem:
        raise AgentFailed("provider_unavailable", str(problem)) from problem
    if version is None:
        raise AgentFailed("provider_unavailable", f"{command} does not say that it is Claude Code")
    found = VERSIONS.judged(Availability(available=True, version=version))
    if not found.available:
        raise AgentFailed("provider_unavailable", found.reason or "")
    return Version(str(program), program.stat().st_mtime_ns, version)


async def _problem(spec: Spec) -> tuple[str | None, bool]:
    """Return the problem with a program, None if it asks; and whether the result is certain.

    A program that was too slow, or has ended, is tested again.
    """
    async with current_host().private_files({}) as directory, stub_model(_TOOL, _INPUT) as model:
        tested = evolve(
            spec,
            cwd=str(directory),
            is_cwd_resolved=False,
            env=_environment(spec, directory, model),
            sources="user",
            mode=permission_mode("workspace-write", "on-request"),
            model=None,
            effort=None,
            schema=None,
        )
        tag = f"claude-self-test.{uuid.uuid4().hex}"
        process = ClaudeProcess(
            PROTOCOL, tag, _TEST_S, tested, str(uuid.uuid4()), resumes=False, tools=()
        )
        problem: str | None = f"it took more than {_TEST_S:g} s"
        is_known = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.run)
            try:
                with anyio.move_on_after(_TEST_S):
                    problem, is_known = await _converse(process, model), True
            except AgentFailed as failure:
                problem = failure.message
            except anyio.EndOfStream:
                problem = "it ended" if process.failure is None else process.failure.message
            finally:
                with anyio.CancelScope(shield=True):
                    process.kill()
                    await process.ended.wait()
        if (directory / _FILE).exists():
            return "it ran a command without asking", True
        return problem, is_known


def _environment(spec: Spec, directory: Path, model: StubModel) -> frozenset[tuple[str, str]]:
    own = {name: value for name, value in spec.env if name in _KEPT}
    own |= {
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "CLAUDE_CONFIG_DIR": str(directory / "claude"),
        "ANTHROPIC_API_KEY": "self-test",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{model.port}",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return frozenset(environment(own, None).items())


async def _converse(process: ClaudeProcess, model: StubModel) -> str | None:
    with process.open_mailbox() as mailbox:
        process.lease()
        await process.ready()
        message_id = str(uuid.uuid4())
        process.notify("user", user_message(message_id, "test", ()))
        states: list[Any] = []
        asked = 0
        while "completed" not in states:
            match await mailbox.take():
                case AgentRequest(method="can_use_tool") as request:
                    asked += request.params.get("tool_name") == _TOOL
                    process.respond(request, approvals.deny(_WORDS))
                case Notification(method, params) if method == LIFECYCLE:
                    if params.get("command_uuid") == message_id:
                        states.append(params.get("state"))
    if states != ["queued", "started", "completed"]:
        return f"it reported the states {states} of a message"
    if asked != 1:
        return f"it asked {asked} times"
    told = [result for result in model.results if _WORDS in str(result.get("content"))]
    if not told or any(result.get("is_error") is not True for result in told):
        return "the model was not told of the denial"
    return None
