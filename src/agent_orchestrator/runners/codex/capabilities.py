"""What codex can do, however it is run."""

from typing import Final

from agent_orchestrator.domain.model import Sandbox
from agent_orchestrator.ports import Capabilities, InputLimit
from agent_orchestrator.runners.codex.argv import MAX_INPUT

_MESSAGE_OPTIONS: Final = frozenset({"model", "effort", "output_schema", "images"})


def codex_capabilities(sandbox: Sandbox | None) -> Capabilities:
    """Return what codex can do.

    :param sandbox: the runner's own setting; None leaves it to codex's configuration.
    """
    return Capabilities(
        resumes=True,  # codex keeps its threads on disk, turn by turn
        confines=True,  # exec by arguments, which never asks; the app server with every turn
        sandbox=sandbox,
        protects=sandbox != "danger-full-access",
        message_options=_MESSAGE_OPTIONS,
        max_input=InputLimit(characters=MAX_INPUT),
    )
