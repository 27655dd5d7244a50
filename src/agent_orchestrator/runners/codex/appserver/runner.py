"""Running turns with ``codex app-server``: warm processes that serve many sessions."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

import anyio
import anyio.to_thread
from attrs import evolve, field, frozen, validators

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import ApprovalPolicy, Invocation, Sandbox
from agent_orchestrator.ports import RUN_VARIABLES, Availability, Outcome, RunContext
from agent_orchestrator.runners.codex.appserver.conversation import Conversation, NotLoaded
from agent_orchestrator.runners.codex.appserver.peer import Refused
from agent_orchestrator.runners.codex.appserver.pool import NotStarted, Pool
from agent_orchestrator.runners.codex.appserver.server import Lease, Server, Spec
from agent_orchestrator.runners.codex.appserver.threads import Opened
from agent_orchestrator.runners.codex.appserver.tools import Tools
from agent_orchestrator.runners.codex.appserver.versions import aged
from agent_orchestrator.runners.codex.argv import app_server_arguments, is_thread_id
from agent_orchestrator.runners.codex.failures import is_busy, refusal_code
from agent_orchestrator.runners.codex.items import text
from agent_orchestrator.runners.codex.probe import Probe, environment, profile_warning
from agent_orchestrator.runners.codex.tools import past_proxies, tools_config, tools_url
from agent_orchestrator.runners.keepers import Guarded

_log = logging.getLogger(__name__)

_OPEN_S: Final = 120.0
"""Seconds codex has to open a thread; it takes 0.03, and what its MCP servers take to start."""

_BUSY_DELAYS: Final = (0.1, 0.2, 0.4, 0.8)
"""Seconds before each new try of a thread that another process has open: the lock of one that was
just killed is free within moments (codex 0.169)."""

_SHORTEST_S: Final = 0.01
_LONGEST_S: Final = 30 * 86_400.0
"""Seconds for which a question can be open: it is refused otherwise, and so declined."""

_TRIES: Final = 2
"""How often a prompt is given that codex did not come to take."""

_PLAIN_HISTORY: Final[Mapping[str, Any]] = {"historyMode": "legacy"}
"""Codex 0.169 otherwise indexes a thread's items at every step, for clients that page through them,
which is a sixth of its work in a turn. Ours page through the session's log."""

HAS_TOOLS: Final = "has_tools"
"""What is remembered with a thread that was begun with the orchestration tools."""


class _NotTaken(Exception):
    """The process ended, or let go of the thread, before it had the prompt: it can be given again."""

    def __init__(self, failure: AgentFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _ThreadMissing(Exception):
    """Codex has lost the thread to resume."""


@frozen(kw_only=True, eq=False)
class CodexAppServerRunner(Guarded):
    """Runs each message as a turn of the session's thread, in a process that stays warm.

    A scope, for one engine at a time: the processes end with it.

    :param name: the provider's name.
    :param command: codex: a path, or a name on the PATH. The native binary behind the npm wrapper
        is started directly.
    :param home: its CODEX_HOME; the environment's own, or ``~/.codex``, without one.
    :param profile: its ``--profile``.
    :param extra_args: arguments before the subcommand.
    :param sandbox: what commands may do without asking.
    :param approval_policy: when codex asks: ``untrusted`` for all but what is known to be harmless,
        ``on-request`` when it wants to do more than the sandbox lets it, ``never``.
    :param approval_timeout_s: seconds after which what nobody has answered is declined: 30 days at
        most.
    :param model: the model, unless the run asks for another.
    :param on_missing_thread: what to do when codex has lost the session's thread: go on in a new
        one, which then replaces it, or fail with ``thread_missing``.
    :param config: overrides of codex's configuration, by dotted key.
    :param max_threads_per_process: how many threads one process holds.
    :param tools: whether its agents get the orchestration tools, where a daemon serves them.
    :param idle_s: seconds after which a process without a run is ended.
    """

    name: str = "codex"
    command: str = "codex"
    home: str | None = None
    profile: str | None = None
    extra_args: Sequence[str] = field(default=(), converter=tuple)
    sandbox: Sandbox = field(
        default="workspace-write",
        validator=validators.in_(("read-only", "workspace-write", "danger-full-access")),
    )
    approval_policy: ApprovalPolicy = field(
        default="on-request", validator=validators.in_(("untrusted", "on-request", "never"))
    )
    approval_timeout_s: float = field(
        default=3600.0, validator=[validators.ge(_SHORTEST_S), validators.le(_LONGEST_S)]
    )
    model: str | None = None
    on_missing_thread: Literal["fail", "fresh"] = field(
        default="fresh", validator=validators.in_(("fail", "fresh"))
    )
    config: Mapping[str, Any] = field(factory=dict)
    max_threads_per_process: int = field(default=100, validator=validators.ge(1))
    tools: bool = True
    idle_s: float = field(default=300.0, validator=validators.ge(0))
    _tools: Tools = field(factory=Tools, init=False, repr=False)
    _probe: Probe = field(factory=Probe, init=False, repr=False)
    _seen: dict[frozenset[tuple[str, str]], Availability] = field(
        factory=dict, init=False, repr=False
    )
    """What was found last, by the environment it was found in."""
    _refusals: dict[str | None, str] = field(factory=dict, init=False, repr=False)
    """The versions whose app-server did not begin, with what it said."""
    _pool: Pool = field(init=False, repr=False)

    @_pool.default
    def _new_pool(self) -> Pool:
        return Pool(self.max_threads_per_process, self.idle_s)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            await self._pool.__aenter__()
        except BaseException:
            await super().__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._pool.__aexit__(*exc)
        finally:
            try:
                await self._tools.close()
            finally:
                await super().__aexit__()

    @property
    def resumes(self) -> bool:
        """Codex keeps its threads on disk, turn by turn."""
        return True

    @property
    def confines(self) -> bool:
        """It tells codex with every turn that is confined otherwise than the one before."""
        return True

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Look whether codex is there, logged in, and of an age this runner knows.

        One that is at work is all that, as it was found before it was started.
        """
        own = self._own_env(env)
        key = frozenset(own.items())
        if key in self._seen and self._pool.serves(key):
            return self._seen[key]
        found = await anyio.to_thread.run_sync(self._look, own)
        self._seen.clear()
        if found.available:
            self._seen[key] = found
        return found

    def _look(self, env: Mapping[str, str]) -> Availability:
        found = self._probe(
            self.command,
            env,
            profile=self.profile,
            config=self.config,
            extra_args=self.extra_args,
        )
        return self._judged(found)

    def _judged(self, found: Availability) -> Availability:
        """Return what was found of a codex, with what is to be said of its age."""
        if not found.available:
            return found
        if (refusal := self._refusals.get(found.version)) is not None:
            return evolve(found, available=False, reason=refusal)
        return aged(found)

    def _own_env(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a process that serves the runs of this one."""
        own = environment(_shared(env), self.home)
        url = own.get("AGENTCTL_URL")
        return past_proxies(own, url) if self.tools and url else own

    async def run(self, context: RunContext) -> Outcome:
        """Run the turn.

        :raises AgentFailed: if codex cannot be started, fails, or ends before its turn does.
        """
        env = self._own_env(context.env)
        arguments = app_server_arguments(
            extra_args=self.extra_args, profile=self.profile, config=self.config
        )
        spec = Spec(self.command, arguments, frozenset(env.items()))
        thread_id = None if context.thread is None else context.thread.id
        if not self._pool.has(spec, thread_id):
            await self._prepare(context, env)
        steered: list[str] = []
        try:
            return await self._tried(context, spec, thread_id, steered)
        finally:
            if steered:
                with anyio.CancelScope(shield=True):
                    for message in steered:
                        note = f"the turn ended before the agent was given this: {message}"
                        await context.emit(EventType.RUN_ERROR, {"message": note})

    async def _tried(
        self, context: RunContext, spec: Spec, thread_id: str | None, steered: list[str]
    ) -> Outcome:
        left = _TRIES
        while True:
            left -= 1
            try:
                return await self._turn(context, spec, thread_id, steered)
            except _ThreadMissing as missing:
                if self.on_missing_thread == "fail":
                    raise AgentFailed("thread_missing", str(missing)) from None
                note = f"the thread is gone, a new one is begun: {missing}"
                data = {"message": note, "code": "thread_missing"}
                await context.emit(EventType.RUN_ERROR, data)
                thread_id = None
                left += 1
            except NotStarted as problem:
                seen = self._seen.get(spec.env)
                if problem.is_unknown and seen is not None:
                    self._refusals[seen.version] = problem.message
                raise
            except _NotTaken as problem:
                if left == 0:
                    raise problem.failure from None

    async def _prepare(self, context: RunContext, env: Mapping[str, str]) -> None:
        """See to it that a thread can be opened: codex takes a directory that is not there."""
        cwd = context.session.cwd
        if not await anyio.Path(cwd).is_dir():
            raise AgentFailed("invalid_config", f"cwd {cwd} does not exist")
        warning = await anyio.to_thread.run_sync(profile_warning, self.profile, env)
        if warning is not None:
            await context.emit(EventType.RUN_ERROR, {"message": warning, "code": "invalid_config"})

    async def _turn(
        self, context: RunContext, spec: Spec, thread_id: str | None, steered: list[str]
    ) -> Outcome:
        if thread_id is not None and not is_thread_id(thread_id):
            raise _ThreadMissing(f"{thread_id!r} is not a thread id")
        before = context.thread if thread_id is not None else None
        async with self._pool.lease(spec, thread_id) as lease:
            server = lease.server
            invocation = Invocation(
                self.command,
                server.argv,
                context.session.cwd,
                self.profile,
                tuple(self.extra_args),
            )
            conversation: Conversation | None = None
            try:
                thread_id, overrides = await self._loaded(context, lease, thread_id)
                has_tools = server.threads[thread_id].has_tools
                with server.route(thread_id) as route:
                    conversation = Conversation(
                        context,
                        server,
                        thread_id,
                        route,
                        before,
                        overrides,
                        {HAS_TOOLS: True} if has_tools else {},
                        invocation,
                        self._tools,
                        self.approval_timeout_s,
                        steered,
                    )
                    return await conversation.hold()
            except NotLoaded as problem:
                raise _NotTaken(AgentFailed("thread_missing", str(problem))) from problem
            except AgentFailed as failure:
                is_taken = conversation is not None and conversation.is_taken
                if server.failure is None or is_taken:
                    raise
                raise _NotTaken(failure) from failure
            finally:
                if thread_id in server.threads and server.threads[thread_id].is_of_one_run:
                    with anyio.CancelScope(shield=True):
                        await server.unload(thread_id)

    async def _loaded(
        self, context: RunContext, lease: Lease, thread_id: str | None
    ) -> tuple[str, Mapping[str, Any]]:
        """See to it that codex has the thread; return it, and what to tell its next turn."""
        wanted = Opened(
            context.model or self.model,
            context.run.approval_policy or self.approval_policy,
            context.run.sandbox or self.sandbox,
        )
        threads = lease.server.threads
        before = threads.get(thread_id) if thread_id is not None else None
        if thread_id is None or before is None:
            return await self._open(context, lease, thread_id, wanted), {}
        if not before.is_certain:
            # Codex may have it as the run wanted that did not wait: it then takes nothing of this.
            await self._open(context, lease, thread_id, wanted)
            return thread_id, await _changes(context, lease.server, None, wanted)
        overrides = await _changes(context, lease.server, before, wanted)
        threads[thread_id] = evolve(
            before,
            model=wanted.model,
            approval_policy=wanted.approval_policy,
            sandbox=wanted.sandbox,
        )
        return thread_id, overrides

    async def _open(
        self, context: RunContext, lease: Lease, thread_id: str | None, wanted: Opened
    ) -> str:
        """Have codex load the thread, or begin one; return its id."""
        params: dict[str, Any] = {
            "cwd": context.session.cwd,
            "approvalPolicy": wanted.approval_policy,
            "sandbox": wanted.sandbox,
            "model": wanted.model,
            "config": _commands_env(context.env),
        }
        method = "thread/start"
        url = tools_url(context.env) if self.tools else None
        if thread_id is None:
            params |= _PLAIN_HISTORY
            if url is not None:
                params["dynamicTools"] = await self._tools.specs(context.env)
                wanted = evolve(wanted, has_tools=True)
        else:
            method = "thread/resume"
            params |= {"threadId": thread_id, "excludeTurns": True}
            if context.thread is not None and context.thread.state.get(HAS_TOOLS):
                wanted = evolve(wanted, has_tools=True)
            elif url is not None:
                params["config"] |= _tools_of_a_run(context.env, url)
                wanted = evolve(wanted, is_of_one_run=True)
            # Whether or not its answer is waited for, from now on no other process may have it.
            lease.loaded(thread_id, evolve(wanted, is_certain=False))
        try:
            answer = await _opened(lease.server, method, params)
        except Exception:
            if thread_id is not None:
                lease.server.threads.pop(thread_id, None)
            raise
        thread = answer.get("thread") if isinstance(answer, dict) else None
        found = text(thread.get("id")) if isinstance(thread, dict) else ""
        if not is_thread_id(found) or found != (thread_id or found):
            note = f"codex answered {method} with the thread {found!r}"
            raise AgentFailed("provider_error", note)
        if wanted.model is None:
            wanted = evolve(wanted, default_model=text(answer.get("model")) or None)
        lease.loaded(found, wanted)
        return found


def _tools_of_a_run(env: Mapping[str, str], url: str) -> Mapping[str, Any]:
    """Return the configuration that gives a thread the tools for as long as it is loaded."""
    token = env["AGENTCTL_AUTH_TOKEN"]
    return {**tools_config(url, token), "thread_unload_delay_secs": 0}


def _shared(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return what is the same for all runs of a provider."""
    return {name: value for name, value in env.items() if name not in RUN_VARIABLES}


async def _opened(server: Server, method: str, params: Mapping[str, Any]) -> Any:
    delays = iter(_BUSY_DELAYS)
    while True:
        try:
            return await server.request(method, params, _OPEN_S)
        except Refused as refused:
            if is_busy(refused.message):
                if (delay := next(delays, None)) is None:
                    note = f"another process is using this thread: {refused.message}"
                    raise AgentFailed("provider_error", note) from refused
                await anyio.sleep(delay)
                continue
            if params.keys() >= _PLAIN_HISTORY.keys():
                # A codex that knows only the other way, perhaps.
                params = {key: params[key] for key in params if key not in _PLAIN_HISTORY}
                continue
            code = refusal_code(refused.message)
            if code == "thread_missing":
                raise _ThreadMissing(refused.message) from refused
            raise AgentFailed(code, f"codex refused {method}: {refused.message}") from refused


def _commands_env(env: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration that gives a thread's commands what is the session's own.

    Codex 0.169 takes it when it loads a thread and not later, so that nothing of a single run can be
    among it.
    """
    name = "AGENTCTL_SESSION_ID"
    return {f"shell_environment_policy.set.{name}": env[name]} if name in env else {}


async def _changes(
    context: RunContext, server: Server, before: Opened | None, wanted: Opened
) -> Mapping[str, Any]:
    """Return what to tell a turn of what was otherwise in the thread's turns so far.

    :param before: None where that is not known.
    """
    found: dict[str, Any] = {}
    default_model = None if before is None else before.default_model
    if (before is None or wanted.model != before.model) and (
        model := wanted.model or default_model
    ):
        found["model"] = model
    if before is None or wanted.approval_policy != before.approval_policy:
        found["approvalPolicy"] = wanted.approval_policy
    if before is None or wanted.sandbox != before.sandbox:
        policy = _SANDBOXES[wanted.sandbox]
        if wanted.sandbox == "workspace-write":
            policy = {**policy, **await _configured(server, context.session.cwd)}
        found["sandboxPolicy"] = policy
    return found


async def _configured(server: Server, cwd: str) -> Mapping[str, Any]:
    """Return what codex's configuration says of writing in the workspace.

    Codex 0.169 goes by it when it loads a thread, and not when a turn is to be confined otherwise.
    """
    try:
        answer = await server.request("config/read", {"cwd": cwd}, _OPEN_S)
        settings = answer["config"]["sandbox_workspace_write"]
        if settings is None:
            return {}
        return {ours: settings[theirs] for ours, theirs in _CONFIGURED.items()}
    except (Refused, KeyError, TypeError) as problem:
        _log.warning("codex does not say how workspaces are confined: %r", problem)
        return {}


_CONFIGURED: Final[Mapping[str, str]] = {
    "writableRoots": "writable_roots",
    "networkAccess": "network_access",
    "excludeTmpdirEnvVar": "exclude_tmpdir_env_var",
    "excludeSlashTmp": "exclude_slash_tmp",
}

_SANDBOXES: Final[Mapping[str, Mapping[str, Any]]] = {
    "read-only": {"type": "readOnly", "networkAccess": False},
    "workspace-write": {
        "type": "workspaceWrite",
        "writableRoots": [],
        "networkAccess": False,
        "excludeTmpdirEnvVar": False,
        "excludeSlashTmp": False,
    },
    "danger-full-access": {"type": "dangerFullAccess"},
}
