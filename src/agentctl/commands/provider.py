"""``agentctl provider``: the agents that agentd can run."""

from typing import Any

import click

from agentctl.call import Call
from agentctl.options import Group


@click.group(
    cls=Group,
    examples="""
    agentctl provider list
    agentctl ask --provider demo "What does this project do?"
    """,
)
def provider() -> None:
    """Show the agents that agentd can run."""


@provider.command(
    "list",
    examples="""
    agentctl provider list
    agentctl --format json provider list
    agentctl provider list --field providers
    """,
)
def list_() -> None:
    """List all providers: whether each is ready, its version and login, what it can do, and what it
    lacks.

    Start the agent of another provider with --provider NAME.
    """
    call = Call.current()

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations.daemon import STATUS
        from agentctl.views import provider_cards

        found = (await connection.call(STATUS)).providers
        call.output.answer({"providers": found}, lambda: provider_cards(found))

    call.run(body)
