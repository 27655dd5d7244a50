"""What agents can do to the daemon, its user and each other, by how far a sandbox confines them.

The one table of it: ``docs/security.md`` shows it, ``doctor`` names what is possible, and a test has agents
try it.
"""

from typing import Final, Literal

from attrs import frozen

Outcome = Literal["refused", "possible"]


@frozen
class AgentAction:
    """Something that an agent may try.

    :param name: what the tests call it.
    :param text: what it is, as what follows "can".
    :param confined: what comes of it with the sandbox ``read-only`` or ``workspace-write``.
    :param networked: the same where the sandbox lets it use the network.
    :param unconfined: the same without a sandbox: a ``command`` agent, or ``danger-full-access``.
    """

    name: str
    text: str
    confined: Outcome
    networked: Outcome
    unconfined: Outcome


AGENT_ACTIONS: Final = (
    AgentAction(
        "state",
        "change agentd's configuration, database, log and tokens",
        "refused",
        "refused",
        "possible",
    ),
    AgentAction("secrets", "read its database and its tokens", "refused", "refused", "possible"),
    AgentAction(
        "directories", "write in other sessions' directories", "refused", "refused", "possible"
    ),
    AgentAction("processes", "signal other agents' processes", "refused", "refused", "possible"),
    AgentAction("sockets", "connect to other programs' sockets", "refused", "possible", "possible"),
    AgentAction(
        "program",
        "change their own program's configuration and rules",
        "refused",
        "refused",
        "possible",
    ),
    AgentAction("memory", "read agentd's environment and memory", "refused", "refused", "refused"),
    AgentAction(
        "approve", "approve its own request, with whatever token", "refused", "refused", "refused"
    ),
    AgentAction(
        "administer", "call agentd as its user or administrator", "refused", "refused", "refused"
    ),
    AgentAction(
        "spawn", "spawn a child that may do more than itself", "refused", "refused", "refused"
    ),
)


def possible_without_sandbox() -> str:
    """Return what agents without a sandbox can do, as what follows "can"."""
    return "; ".join(action.text for action in AGENT_ACTIONS if action.unconfined == "possible")


def possible_with_network() -> str:
    """Return what agents in a sandbox can do that may use the network, as what follows "can"."""
    return "; ".join(action.text for action in AGENT_ACTIONS if action.networked == "possible")


def table() -> str:
    """Return the table as Markdown."""
    words = {"refused": "no", "possible": "**yes**"}
    lines = [
        "| an agent can | in a sandbox | in a sandbox with network | without a sandbox |",
        "|---|---|---|---|",
    ]
    for action in AGENT_ACTIONS:
        cells = (words[one] for one in (action.confined, action.networked, action.unconfined))
        lines.append(f"| {action.text} | {' | '.join(cells)} |")
    return "\n".join(lines)
