"""The table of harmful actions of agents, and whether a sandbox prevents them.

``docs/security.md`` and ``doctor`` show the table. A test lets agents try each action.
"""

from typing import Final, Literal

from attrs import frozen

Outcome = Literal["refused", "possible"]


@frozen
class AgentAction:
    """A harmful action that an agent may try.

    :param name: its name in tests.
    :param text: a verb phrase that continues "an agent can".
    :param confined: the outcome with the sandbox ``read-only`` or ``workspace-write``.
    :param networked: the outcome in a sandbox with access to the network.
    :param unconfined: the outcome without a sandbox: a ``command`` agent, or ``danger-full-access``.
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
        "approve", "approve its own request, with any token", "refused", "refused", "refused"
    ),
    AgentAction(
        "administer", "call agentd as its user or administrator", "refused", "refused", "refused"
    ),
    AgentAction(
        "spawn", "spawn a child that may do more than itself", "refused", "refused", "refused"
    ),
)


def possible_without_sandbox() -> str:
    """Return the actions that are possible without a sandbox, as a verb phrase."""
    return "; ".join(action.text for action in AGENT_ACTIONS if action.unconfined == "possible")


def possible_with_network() -> str:
    """Return the actions that are possible in a sandbox with access to the network, as a verb phrase."""
    return "; ".join(action.text for action in AGENT_ACTIONS if action.networked == "possible")


def table() -> str:
    """Return the table as Markdown."""
    words = {"refused": "no", "possible": "**yes**"}
    lines = [
        "| an agent can | in a sandbox | in a sandbox with network | without a sandbox |",
        "|---|---|---|---|",
    ]
    for action in AGENT_ACTIONS:
        cells = (
            words[outcome] for outcome in (action.confined, action.networked, action.unconfined)
        )
        lines.append(f"| {action.text} | {' | '.join(cells)} |")
    return "\n".join(lines)
