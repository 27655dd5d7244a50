"""Confinement of agents (approval policy and sandbox): who may set it, and which runners enforce it."""

from collections.abc import Iterator
from typing import Final, cast, get_args

from anyio.to_thread import run_sync
from attrs import frozen

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import Forbidden, InvalidRequest
from agent_orchestrator.domain.model import MANUAL, ApprovalPolicy, Run, Sandbox, Session
from agent_orchestrator.engine.access import require_scope
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.persistence import read_with_retry
from agent_orchestrator.operations.options import ConfinementOptions
from agent_orchestrator.ports.queries import SessionQueries
from agent_orchestrator.ports.runner import Runner, capabilities_of


@frozen
class Confinement:
    """An approval policy and a sandbox; None means the value of the session, else of the provider."""

    approval_policy: ApprovalPolicy | None = None
    sandbox: Sandbox | None = None

    @classmethod
    def of(cls, source: ConfinementOptions | Session | Run) -> "Confinement":
        """Return the confinement of a command, a session or a run."""
        return cls(source.approval_policy, source.sandbox)

    @classmethod
    def reported(cls, approval_policy: str | None, sandbox: str | None) -> "Confinement":
        """Return the confinement that a runner reports.

        :raises ValueError: if a value is unknown.
        """
        for value, words in ((approval_policy, ApprovalPolicy), (sandbox, Sandbox)):
            if value is not None and value not in get_args(words):
                raise ValueError(f"{value!r} is none of {', '.join(get_args(words))}")
        return cls(cast(ApprovalPolicy | None, approval_policy), cast(Sandbox | None, sandbox))

    def or_else(self, other: "Confinement") -> "Confinement":
        """Return this confinement, with the other's values in place of None."""
        return Confinement(
            self.approval_policy or other.approval_policy, self.sandbox or other.sandbox
        )

    def __bool__(self) -> bool:
        return self != Confinement()


DEFAULT_CONFINEMENT: Final = Confinement()
"""The values of the session, else of the provider."""


def require_permitted(core: Core, caller: Principal, command: ConfinementOptions) -> None:
    """Raise ``Forbidden`` if the caller may not set a confinement.

    An agent may not set any. A sandbox other than ``read-only`` needs the scope ``approve``.
    """
    requested = Confinement.of(command)
    if not requested:
        return
    if caller.run is not None:
        raise Forbidden(
            "an agent may not set how agents are confined", {"run_id": caller.run.run_id}
        )
    if requested.sandbox not in (None, "read-only"):
        require_scope(core, caller, "approve")


def require_supported(core: Core, provider: str, requested: Confinement) -> None:
    """Raise ``InvalidRequest`` if the provider's runner cannot enforce the confinement."""
    config = core.config.providers.get(provider)
    if config is not None and provider != MANUAL and not is_supported_by(config.runner, requested):
        problem = f"{provider} cannot enforce it"
        names = ("approval_policy", "sandbox")
        raise InvalidRequest.of({name: problem for name in names if getattr(requested, name)})


_STRICTEST_FIRST: Final[tuple[Sandbox, ...]] = (
    "read-only",
    "workspace-write",
    "danger-full-access",
)


def of_child(
    core: Core, parent: Run | Session, provider: str | None, child: str | None
) -> Confinement:
    """Return the confinement of a child that an agent spawns: at least as strict as the agent's.

    :param provider: the spawning agent's provider; None means the default route.
    :param child: the child's provider, likewise.
    :raises Forbidden: if the child's provider has no sandbox, and the agent has one.
    """
    requested = Confinement.of(parent)
    default = core.config.routing.default
    own, other = provider or default, child or default
    if other in (own, MANUAL):
        return requested
    widest = _sandbox(core, own, requested.sandbox) or "read-only"
    config = core.config.providers.get(other)
    if config is None:
        return of_child_elsewhere(core, parent, provider)
    if widest == "danger-full-access" or config.open_to_agents:
        return requested
    if not is_supported_by(config.runner, Confinement(sandbox=widest)):
        raise Forbidden(
            f"agents of {own} have a sandbox ({widest}), but agents of {other} have none. An agent may not "
            "spawn a child that may do more than itself, unless the provider sets `open_to_agents`",
            {"provider": other},
        )
    usual = requested.sandbox or _sandbox(core, other, None)
    if usual is not None and _STRICTEST_FIRST.index(usual) <= _STRICTEST_FIRST.index(widest):
        return requested
    return Confinement(sandbox=widest).or_else(requested)


def of_child_elsewhere(core: Core, parent: Run | Session, provider: str | None) -> Confinement:
    """Return the confinement of a child that an agent spawns on another daemon.

    The providers there may have other defaults. So the agent's sandbox is stated, and a provider there that has
    none does not start the child.

    :param provider: the spawning agent's provider; None means the default route.
    """
    requested = Confinement.of(parent)
    widest = _sandbox(core, provider or core.config.routing.default, requested.sandbox)
    if widest == "danger-full-access":
        return requested
    return requested.or_else(Confinement(sandbox=widest or "read-only"))


def _sandbox(core: Core, provider: str, requested: Sandbox | None) -> Sandbox | None:
    """Return the sandbox of a provider's agents; None if unknown."""
    config = core.config.providers.get(provider)
    able = Capabilities() if config is None else capabilities_of(config.runner)
    return requested or able.sandbox if able.confine else "danger-full-access"


def is_supported_by(runner: Runner, requested: Confinement) -> bool:
    """Return True if a runner can enforce a confinement."""
    return not requested or capabilities_of(runner).confine


async def shared_cwd(core: Core, session: Session) -> str:
    """Return the deepest common directory of a session's ``cwd`` and those of its ancestors.

    Symbolic links are resolved, unless all of them are the same.
    """
    if session.parent_session_id is None:
        return session.cwd
    directories = await read_with_retry(core, lambda view: {*_directories(view, session)})
    return (
        session.cwd
        if len(directories) == 1
        else await run_sync(core.config.host.common_directory, directories)
    )


def _directories(view: SessionQueries, session: Session) -> Iterator[str]:
    yield session.cwd
    ancestor: Session | None = session
    while ancestor is not None and ancestor.parent_session_id is not None:
        ancestor = view.session(ancestor.parent_session_id)
        yield "/" if ancestor is None else ancestor.cwd
