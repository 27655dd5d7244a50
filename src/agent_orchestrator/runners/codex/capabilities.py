"""The capabilities of codex, for all its runners."""

from agent_orchestrator.domain.capabilities import Capabilities, InputLimit
from agent_orchestrator.domain.model import ApprovalPolicy, Sandbox
from agent_orchestrator.runners.codex.argv import MAX_INPUT


def codex_capabilities(
    sandbox: Sandbox | None,
    approval_policy: ApprovalPolicy | None,
    *,
    tools: bool,
    is_exec: bool,
) -> Capabilities:
    """Return the capabilities of a codex runner.

    :param sandbox: the runner's own setting; None leaves it to codex's configuration.
    :param approval_policy: likewise.
    :param tools: whether its agents get the orchestration tools.
    :param is_exec: whether each run is a ``codex exec``, which accepts no message during a turn and never
        asks.
    """
    return Capabilities(
        resume=True,  # codex keeps its threads on disk, turn by turn
        steer=not is_exec,
        ask=not is_exec,
        tools=tools,
        confine=True,  # exec by arguments; the app server with every turn
        sandbox=sandbox,
        approval_policy=approval_policy,
        protect=sandbox != "danger-full-access",
        models=True,
        effort=True,
        output_schema=True,
        images=True,
        max_input=InputLimit(characters=MAX_INPUT),
        vendor="openai",
    )
