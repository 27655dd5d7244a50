"""Loads threads in codex, with the confinement for their turns."""

import logging
from collections.abc import Mapping
from typing import Any, Final, cast

import anyio
import anyio.to_thread
from attrs import evolve

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.ports.runner import RunContext, Toolbox
from agent_orchestrator.runners.codex.appserver import requirements
from agent_orchestrator.runners.codex.appserver.dynamic_tools import dynamic_tools
from agent_orchestrator.runners.codex.appserver.server import Lease, Server
from agent_orchestrator.runners.codex.appserver.threads import LoadedThread
from agent_orchestrator.runners.codex.argv import is_thread_id
from agent_orchestrator.runners.codex.confinement import Mode, Workspace, profile_name, profiles
from agent_orchestrator.runners.codex.failures import is_busy, refusal_code
from agent_orchestrator.runners.codex.probe import home_of
from agent_orchestrator.runners.codex.trust import check_home
from agent_orchestrator.runners.conversations import ConversationMissing
from agent_orchestrator.runners.events import text
from agent_orchestrator.runners.live.messages import RpcError

_log = logging.getLogger(__name__)

_OPEN_S: Final = 120.0
"""Maximum seconds to open a thread. It takes 0.03 s, and longer with slow MCP servers."""

_BUSY_DELAYS: Final = (0.1, 0.2, 0.4, 0.8)
"""Seconds before each retry of a thread that another process has open. The lock of a killed process
is free within moments (codex 0.169)."""

_PLAIN_HISTORY: Final[Mapping[str, Any]] = {"historyMode": "legacy"}
"""Disables codex 0.169's index of a thread's items. Codex updates it at every step, which is a sixth of its work in a
turn. Our clients page through the session's log instead."""

_UNLOAD_AT_ONCE: Final[Mapping[str, Any]] = {"thread_unload_delay_secs": 0}
"""Makes codex 0.169 unload a thread as soon as its last client has unsubscribed."""

_AS_LOADED: Final = "read-only"
"""The sandbox of each thread until its first turn, which sets the right one.

If a thread starts with more rights, codex 0.169 assumes that its user trusts the directory, or its
whole repository. It writes that to ``config.toml``, and executes the directory's ``.codex``."""

HAS_TOOLS: Final = "has_tools"
"""The key in a thread's stored state for a thread that began with the orchestration tools."""


async def load_thread(
    context: RunContext,
    lease: Lease,
    thread_id: str | None,
    requested: LoadedThread,
    config: Mapping[str, Any],
    tools: Toolbox | None,
    later_tools: Mapping[str, Any],
) -> tuple[str, Mapping[str, Any]]:
    """Load a thread in codex. Return its id, and the overrides for its next turn.

    :param requested: the confinement of its turns.
    :param config: overrides of codex's configuration for this thread.
    :param tools: the orchestration tools for a new thread, if its agent gets them.
    :param later_tools: the configuration for a thread that began without them.
    :raises ConversationMissing: if codex has lost it.
    :raises AgentFailed: if codex does not load it, or its agent may not work there.
    """
    requested = await _applied_requirements(context, lease.server, requested)
    if (
        requested.sandbox == "workspace-write"
    ):  # in others there is nothing to check, so no thread is needed
        home = str(home_of(dict(lease.server.spec.env)))
        await anyio.to_thread.run_sync(check_home, home, requested.cwd, requested.sandbox)
    threads = lease.server.threads
    before = threads.get(thread_id) if thread_id is not None else None
    if thread_id is not None and before is not None and not _is_reusable(before, requested):
        await _unload(lease.server, thread_id)
        before = None
    if thread_id is None or before is None:
        thread_id = await _start_or_resume(
            context, lease, thread_id, requested, config, tools, later_tools
        )
        before = last = threads[thread_id]
    elif before.is_confirmed:
        last = before
    else:
        # Codex may have loaded it for a canceled run. Then it ignores these settings.
        await _start_or_resume(context, lease, thread_id, requested, config, tools, later_tools)
        before, last = threads[thread_id], None
    overrides = await _changes(context, lease.server, last, requested)
    threads[thread_id] = evolve(
        before,
        model=requested.model,
        approval_policy=requested.approval_policy,
        sandbox=requested.sandbox,
        effort=requested.effort,
    )
    return thread_id, overrides


async def _applied_requirements(
    context: RunContext, server: Server, requested: LoadedThread
) -> LoadedThread:
    """Return the confinement that is allowed. If it differs from the requested one, record it."""
    if server.requirements is None:
        try:
            answer = await server.request(requirements.METHOD, {}, _OPEN_S)
        except RpcError as refused:
            _log.info("codex did not report its requirements: %s", refused)
            answer = None
        server.requirements = requirements.Requirements.of(answer)
    allowed = server.requirements.applied(requested)
    if allowed != requested:
        await context.report_confinement(
            sandbox=allowed.sandbox, approval_policy=allowed.approval_policy
        )
    return allowed


def _is_reusable(opened: LoadedThread, requested: LoadedThread) -> bool:
    """Return whether a loaded thread can take the run's turn.

    It cannot if it was loaded for another directory. Codex 0.169 can reset the effort of an earlier
    turn only by loading the thread again.
    """
    if opened.effort is not None and requested.effort is None:
        return False
    return (opened.cwd, opened.untrusted_directories) == (
        requested.cwd,
        requested.untrusted_directories,
    )


async def _unload(server: Server, thread_id: str) -> None:
    """Unload a thread.

    :raises AgentFailed: if codex keeps it.
    """
    await server.unload(thread_id)
    if thread_id in server.threads:
        raise AgentFailed(
            "provider_error", "codex did not unload the thread, so it cannot be loaded again"
        )


async def _start_or_resume(
    context: RunContext,
    lease: Lease,
    thread_id: str | None,
    requested: LoadedThread,
    config: Mapping[str, Any],
    tools: Toolbox | None,
    later_tools: Mapping[str, Any],
) -> str:
    """Have codex load the thread, or begin one; return its id."""
    requested = evolve(requested, sandbox=_AS_LOADED, effort=None)
    params: dict[str, Any] = {
        "cwd": requested.cwd,
        "approvalPolicy": requested.approval_policy,
        "model": requested.model,
        "config": {
            **_commands_env(context.env),
            **await _profiles(context, lease.server),
            **config,
            **_UNLOAD_AT_ONCE,
        },
        **_confinement(context, requested),
    }
    method = "thread/start"
    if thread_id is None:
        params |= _PLAIN_HISTORY
        if tools is not None:
            params["dynamicTools"] = dynamic_tools(tools)
            requested = evolve(requested, has_tools=True)
    else:
        method = "thread/resume"
        model = requested.model or await _own_model(lease.server, requested.cwd)
        params |= {"threadId": thread_id, "excludeTurns": True, "model": model}
        if context.thread is not None and context.thread.state.get(HAS_TOOLS):
            requested = evolve(requested, has_tools=True)
        elif later_tools:
            params["config"] |= later_tools
            requested = evolve(requested, is_single_run=True)
        # From now on no other process may have it, even if the wait for the answer is canceled.
        lease.loaded(thread_id, evolve(requested, is_confirmed=False))
    try:
        answer = await _request_thread(lease.server, method, params)
    except Exception:
        if thread_id is not None:
            lease.server.threads.pop(thread_id, None)
        raise
    thread = answer.get("thread") if isinstance(answer, dict) else None
    found = text(thread.get("id")) if isinstance(thread, dict) else ""
    if not is_thread_id(found) or found != (thread_id or found):
        note = f"codex answered {method} with the thread {found!r}"
        raise AgentFailed("provider_error", note)
    if requested.model is None:
        requested = evolve(requested, default_model=text(answer.get("model")) or None)
    lease.loaded(found, requested)
    return found


async def _request_thread(server: Server, method: str, params: Mapping[str, Any]) -> Any:
    delays = iter(_BUSY_DELAYS)
    while True:
        try:
            return await server.request(method, params, _OPEN_S)
        except RpcError as refused:
            if is_busy(refused.message):
                if (delay := next(delays, None)) is None:
                    note = f"another process is using this thread: {refused.message}"
                    raise AgentFailed("provider_error", note) from refused
                await anyio.sleep(delay)
                continue
            if params.keys() >= _PLAIN_HISTORY.keys():
                # This version of codex may know only the default mode.
                params = {key: params[key] for key in params if key not in _PLAIN_HISTORY}
                continue
            code = refusal_code(refused.message)
            if code == "thread_missing":
                raise ConversationMissing(refused.message) from refused
            raise AgentFailed(code, f"codex refused {method}: {refused.message}") from refused


def _commands_env(env: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration with a session's variables for the commands of its thread.

    Codex 0.169 reads it only when it loads a thread, so it must not contain variables of a single
    run.
    """
    name = "AGENTCTL_SESSION_ID"
    return {f"shell_environment_policy.set.{name}": env[name]} if name in env else {}


async def _changes(
    context: RunContext, server: Server, before: LoadedThread | None, requested: LoadedThread
) -> Mapping[str, Any]:
    """Return the settings for a turn that differ from those of the thread's last turn.

    :param before: the settings of the last turn; None if they are unknown.
    """
    found: dict[str, Any] = {}
    default_model = None if before is None else before.default_model
    if (before is None or requested.model != before.model) and (
        model := requested.model or default_model
    ):
        found["model"] = model
    if requested.effort is not None:
        found["effort"] = requested.effort
    if context.run.output_schema is not None:
        found["outputSchema"] = context.run.output_schema  # only for this turn
    if before is None or requested.approval_policy != before.approval_policy:
        found["approvalPolicy"] = requested.approval_policy
    if (before is None or requested.sandbox != before.sandbox) and (
        profile := _profile(context, requested)
    ):
        found["permissions"] = profile
    elif before is None or requested.sandbox != before.sandbox:
        policy = _SANDBOXES[requested.sandbox]
        if requested.sandbox == "workspace-write":
            policy = {**policy, **await _configured(server, context.session.cwd)}
        found["sandboxPolicy"] = policy
    return found


async def _profiles(context: RunContext, server: Server) -> Mapping[str, Any]:
    """Return the configuration that defines a thread's permissions in each mode.

    Codex 0.169 reads it only when it loads a thread.
    """
    if not context.protected:
        return {}
    cwd, tmpdir = context.session.cwd, context.env.get("TMPDIR")
    workspace = Workspace.of(await _workspace_settings(server, cwd))
    return profiles(context.protected, cwd, workspace, tmpdir)


def _confinement(context: RunContext, requested: LoadedThread) -> Mapping[str, Any]:
    """Return the confinement with which to load a thread."""
    profile = _profile(context, requested)
    return {"sandbox": requested.sandbox} if profile is None else {"permissions": profile}


def _profile(context: RunContext, requested: LoadedThread) -> str | None:
    """Return the name of the profile for the requested sandbox; None if it needs none."""
    if requested.sandbox == "danger-full-access" or not context.protected:
        return None
    return profile_name(cast("Mode", requested.sandbox))


async def _own_model(server: Server, cwd: str) -> str | None:
    """Return the model that codex uses by default; None if it does not report it.

    Codex 0.169 continues with the model and effort of a thread's last turn, which may have been for
    one message only. Naming a model at the load of the thread prevents that.
    """
    try:
        answer = await server.request("config/read", {"cwd": cwd}, _OPEN_S)
        if named := text(answer["config"]["model"]):
            return named
        answer = await server.request("model/list", {}, _OPEN_S)
        return next((text(one["model"]) for one in answer["data"] if one["isDefault"]), None)
    except (RpcError, KeyError, TypeError) as problem:
        _log.info("codex did not report its model: %r", problem)
        return None


async def _workspace_settings(server: Server, cwd: str) -> Any:
    """Return ``sandbox_workspace_write`` of codex's configuration; None if it is not set."""
    try:
        answer = await server.request("config/read", {"cwd": cwd}, _OPEN_S)
        return answer["config"]["sandbox_workspace_write"]
    except (RpcError, KeyError, TypeError) as problem:
        _log.warning("codex did not report its workspace settings: %r", problem)
        return None


async def _configured(server: Server, cwd: str) -> Mapping[str, Any]:
    """Return codex's settings for writing in the workspace.

    Codex 0.169 applies them when it loads a thread, but not when a turn changes the sandbox.
    """
    settings = await _workspace_settings(server, cwd)
    if not isinstance(settings, dict):
        return {}
    return {ours: settings[theirs] for ours, theirs in _CONFIGURED.items() if theirs in settings}


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
