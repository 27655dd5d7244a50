"""A live Claude Code: one process for one conversation."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from anyio.to_thread import run_sync
from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.ports.runner import ToolSpec
from agent_orchestrator.runners.claude import failures, sdk_tools
from agent_orchestrator.runners.claude.launch import STOP, Spec
from agent_orchestrator.runners.claude.locate import locate
from agent_orchestrator.runners.claude.protocol import INIT, RESULT
from agent_orchestrator.runners.live.messages import AgentRequest, Message, Notification
from agent_orchestrator.runners.live.process import Launch, LiveProcess
from agent_orchestrator.runners.mcp_messages import CALL, CANCEL, TOOL_SERVER, reply
from agent_orchestrator.runners.program import NotInstalled

START_S: Final = 60.0
"""Maximum seconds until Claude Code is ready. It usually takes half a second, or longer with slow MCP servers of the user."""


@define(eq=False)
class ClaudeProcess(LiveProcess):
    """A process.

    :param resumes: whether the conversation exists. Otherwise it begins with this id.
    :param tools: the orchestration tools, if its agent gets them.
    :param rules: the approvals for the session from earlier processes.
    :ivar mode: its present permission mode.
    :ivar has_hooks: whether it asks before each tool which permissions apply. Settings of its user can switch that off.
    :ivar prompts: the ids of the prompts that it was sent.
    """

    spec: Spec
    thread_id: str
    resumes: bool
    tools: Sequence[ToolSpec]
    rules: Sequence[str] = ()
    mode: str = field(init=False)
    has_hooks: bool = field(default=False, init=False)
    prompts: set[str] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self.mode = self.spec.mode

    @property
    def argv(self) -> tuple[str, ...]:
        arguments = self.spec.arguments(self.thread_id, self.rules, resumes=self.resumes)
        return (self.spec.command, *arguments)

    async def launch(self) -> Launch:
        env = dict(self.spec.env)
        try:
            program = await run_sync(locate, self.spec.command, env)
        except NotInstalled as problem:
            raise AgentFailed("provider_unavailable", str(problem)) from problem
        argv = (str(program), *self.argv[1:])
        return Launch(argv, env, self.spec.cwd, self.spec.is_cwd_resolved, STOP)

    async def initialize(self) -> None:
        servers = {"sdkMcpServers": [TOOL_SERVER]} if self.spec.has_tools else {}
        answer = await self.request("initialize", {"hooks": _HOOKS, **servers}, START_S)
        account = answer.get("account") if isinstance(answer, Mapping) else None
        if isinstance(account, Mapping) and _is_logged_out(account):
            raise AgentFailed("auth_failed", NOT_LOGGED_IN)

    def exit_failure(self, exit_code: int | None, stderr: str) -> AgentFailed:
        return failures.exit_failure(exit_code, stderr)

    async def receive(self, message: Message) -> None:
        match message:
            case AgentRequest(method=sdk_tools.METHOD, params=params):
                said = sdk_tools.message_of(params)
                if said.get("method") not in (CALL, CANCEL):
                    self.respond(message, sdk_tools.answer(reply(said, self.tools)))
                    return
            case AgentRequest(method="hook_callback", params=params):
                self.has_hooks = True
                self.respond(message, hook_answer(params.get("input")))
                return
            case Notification(method) if method == RESULT and not self.is_ready:
                if failures.is_conversation_missing(message.params):
                    problem = f"Claude Code has no conversation {self.thread_id}"
                    self.fail(AgentFailed("thread_missing", problem))
                    return
            case Notification(method) if method == INIT and not self.leases:
                # A turn without a prompt. Its tools would work outside of a run.
                self.fail(AgentFailed("provider_error", "Claude Code started a turn by itself"))
                return
        await super().receive(message)


_HOOKS: Final = {"PreToolUse": [{"matcher": "*", "hookCallbackIds": ["permissions"]}]}

ASKING_MODES: Final = ("default", "acceptEdits")
"""The permission modes in which Claude Code asks before it uses a tool that is not known to be harmless."""

_UNASKED: Final = ("Read", "Glob", "Grep", "EnterPlanMode", "ExitPlanMode", "AskUserQuestion")
"""Tools that only read, or ask by themselves."""


def hook_answer(asked: Any) -> Mapping[str, Any]:
    """Return which permissions apply to a tool call: Claude Code's own in a mode in which it asks, otherwise a question.

    In the plan mode of 2.1.332, which an agent can enter, a model decides which commands may run.
    """
    said = asked if isinstance(asked, Mapping) else {}
    name = str(said.get("tool_name"))
    if said.get("permission_mode") in ASKING_MODES or name in _UNASKED:
        return {}
    if name.startswith(f"mcp__{TOOL_SERVER}__"):
        return {}
    reason = f"nobody is asked in the permission mode {said.get('permission_mode')}"
    decision = {"permissionDecision": "ask", "permissionDecisionReason": reason}
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", **decision}}


NOT_LOGGED_IN: Final = (
    "Claude Code is not logged in: run `claude auth login`, or set ANTHROPIC_API_KEY"
)


def _is_logged_out(account: Mapping[str, Any]) -> bool:
    """Return whether there is neither a login nor a key, for the provider that needs one."""
    return (
        account.get("tokenSource") == "none"
        and not account.get("apiKeySource")
        and account.get("apiProvider", "firstParty") == "firstParty"
    )
