"""When agents ask, and what they may do without: who may say so, and who keeps to it."""

from collections.abc import Iterator
from typing import Final, cast, get_args

from anyio.to_thread import run_sync
from attrs import frozen

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Forbidden, InvalidRequest
from agent_orchestrator.domain.model import MANUAL, ApprovalPolicy, Run, Sandbox, Session
from agent_orchestrator.engine.access import require_scope
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.persistence import read_with_retry
from agent_orchestrator.operations import ConfinementOptions
from agent_orchestrator.ports import Capabilities, Runner, View, capabilities_of


@frozen
class Confinement:
    """What is asked for; None leaves it to what is asked less specially, at last to the provider."""

    approval_policy: ApprovalPolicy | None = None
    sandbox: Sandbox | None = None

    @classmethod
    def of(cls, said: ConfinementOptions | Session | Run) -> "Confinement":
        """Return what a command, a session or a run says of it."""
        return cls(said.approval_policy, said.sandbox)

    @classmethod
    def reported(cls, approval_policy: str | None, sandbox: str | None) -> "Confinement":
        """Return what a runner says of it.

        :raises ValueError: for a word that there is not.
        """
        for word, words in ((approval_policy, ApprovalPolicy), (sandbox, Sandbox)):
            if word is not None and word not in get_args(words):
                raise ValueError(f"{word!r} is none of {', '.join(get_args(words))}")
        return cls(cast(ApprovalPolicy | None, approval_policy), cast(Sandbox | None, sandbox))

    def or_else(self, other: "Confinement") -> "Confinement":
        """Return this, and where it says nothing the other."""
        return Confinement(
            self.approval_policy or other.approval_policy, self.sandbox or other.sandbox
        )

    def __bool__(self) -> bool:
        return self != Confinement()


def require_permitted(core: Core, caller: Principal, command: ConfinementOptions) -> None:
    """Do nothing, or refuse.

    :raises Forbidden: if the caller is an agent, or what it asks for lets one do more than read and
        the caller may not approve what agents do.
    """
    asked = Confinement.of(command)
    if not asked:
        return
    if caller.run is not None:
        raise Forbidden(
            "an agent may not say how agents are confined", {"run_id": caller.run.run_id}
        )
    if asked.sandbox not in (None, "read-only"):
        require_scope(core, caller, "approve")


def require_supported(core: Core, provider: str, asked: Confinement) -> None:
    """Do nothing, or refuse.

    :raises InvalidRequest: if the provider cannot keep to it.
    """
    config = core.config.providers.get(provider)
    if config is not None and provider != MANUAL and not is_supported_by(config.runner, asked):
        problem = f"{provider} cannot keep to it"
        names = ("approval_policy", "sandbox")
        raise InvalidRequest.of({name: problem for name in names if getattr(asked, name)})


_STRICTEST_FIRST: Final[tuple[Sandbox, ...]] = (
    "read-only",
    "workspace-write",
    "danger-full-access",
)


def of_child(
    core: Core, parent: Run | Session, provider: str | None, child: str | None
) -> Confinement:
    """Return how the agents of a child are confined that an agent spawns: not less than it is itself.

    :param provider: the spawning agent's provider; None is the default route.
    :param child: the child's.
    :raises Forbidden: if the child's provider has no sandbox, and the agent has one.
    """
    asked = Confinement.of(parent)
    default = core.config.routing.default
    own, other = provider or default, child or default
    if other in (own, MANUAL):
        return asked
    most = _sandbox(core, own, asked.sandbox) or "read-only"
    config = core.config.providers[other]
    if most == "danger-full-access" or config.open_to_agents:
        return asked
    if not is_supported_by(config.runner, Confinement(sandbox=most)):
        raise Forbidden(
            f"agents of {own} have a sandbox ({most}) and those of {other} have none: an agent may not "
            "spawn one that may do more; `open_to_agents` of a provider allows it",
            {"provider": other},
        )
    usual = asked.sandbox or _sandbox(core, other, None)
    if usual is not None and _STRICTEST_FIRST.index(usual) <= _STRICTEST_FIRST.index(most):
        return asked
    return Confinement(sandbox=most).or_else(asked)


def _sandbox(core: Core, provider: str, asked: Sandbox | None) -> Sandbox | None:
    """Return what agents of a provider may do; None if that is not known here."""
    config = core.config.providers.get(provider)
    able = Capabilities() if config is None else capabilities_of(config.runner)
    return asked or able.sandbox if able.confines else "danger-full-access"


def is_supported_by(runner: Runner, asked: Confinement) -> bool:
    """Tell whether a runner's agents are confined as asked."""
    return not asked or capabilities_of(runner).confines


async def shared_cwd(core: Core, session: Session) -> str:
    """Return the deepest directory that holds a session's and that of each session above it.

    It has no symbolic link in it, except where all of them work in the same one.
    """
    if session.parent_session_id is None:
        return session.cwd
    places = await read_with_retry(core, lambda view: {*_directories(view, session)})
    return (
        session.cwd
        if len(places) == 1
        else await run_sync(core.config.host.common_directory, places)
    )


def _directories(view: View, session: Session) -> Iterator[str]:
    yield session.cwd
    above: Session | None = session
    while above is not None and above.parent_session_id is not None:
        above = view.session(above.parent_session_id)
        yield "/" if above is None else above.cwd
