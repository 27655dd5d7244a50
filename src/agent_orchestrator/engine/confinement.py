"""When agents ask, and what they may do without: who may say so, and who keeps to it."""

from attrs import frozen

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Forbidden, InvalidRequest
from agent_orchestrator.domain.model import MANUAL, ApprovalPolicy, Run, Sandbox, Session
from agent_orchestrator.engine.access import in_scope
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations import CreateSession, SendMessage, UpdateSession
from agent_orchestrator.ports import Confining, Runner

Command = CreateSession | UpdateSession | SendMessage


@frozen
class Confinement:
    """What is asked for; None leaves it to what is asked less specially, at last to the provider."""

    approval_policy: ApprovalPolicy | None = None
    sandbox: Sandbox | None = None

    @classmethod
    def of(cls, said: Command | Session | Run) -> "Confinement":
        """Return what a command, a session or a run says of it."""
        return cls(said.approval_policy, said.sandbox)

    def over(self, other: "Confinement") -> "Confinement":
        """Return this, and where it says nothing the other."""
        return Confinement(
            self.approval_policy or other.approval_policy, self.sandbox or other.sandbox
        )

    def __bool__(self) -> bool:
        return self != Confinement()


def check_asked(core: Core, who: Principal, command: Command) -> None:
    """Do nothing, or refuse.

    :raises Forbidden: if the caller is an agent, or what it asks for lets one do more than read and
        the caller may not approve what agents do.
    """
    asked = Confinement.of(command)
    if not asked:
        return
    if who.run is not None:
        raise Forbidden("an agent may not say how agents are confined", {"run_id": who.run.run_id})
    if asked.sandbox not in (None, "read-only"):
        in_scope(core, who, "approve")


def check_kept(core: Core, provider: str, asked: Confinement) -> None:
    """Do nothing, or refuse.

    :raises InvalidRequest: if the provider cannot keep to it.
    """
    config = core.config.providers.get(provider)
    if config is not None and provider != MANUAL and not keeps(config.runner, asked):
        problem = f"{provider} cannot keep to it"
        names = ("approval_policy", "sandbox")
        raise InvalidRequest.of({name: problem for name in names if getattr(asked, name)})


def keeps(runner: Runner, asked: Confinement) -> bool:
    """Tell whether a runner's agents are confined as asked."""
    return not asked or (isinstance(runner, Confining) and runner.confines)
