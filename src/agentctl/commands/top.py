"""``agentctl top``: a live display."""

import sys
from typing import Any

import click

from agentctl.call import Call
from agentctl.failures import usage_failure
from agentctl.options import Command
from agentctl.terminal import is_terminal


@click.command(
    cls=Command,
    examples="""
    agentctl top
    agentctl --url http://127.0.0.1:9000 top
    """,
)
def top() -> None:
    """Watch workers, queue and runs, and answer requests, on a full screen.

    Keys: up and down select a request; space scrolls a long one; a approves, d denies, r answers a
    question with text; q quits.
    """
    call = Call.current()
    if call.settings.structured or not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise usage_failure(
            "top needs a terminal; in scripts use `run list`, `request list` and `events tail`"
        )
    from agentctl.screen import full_screen

    with full_screen() as screen:

        async def body(connection: Any) -> None:
            from agentctl.top import show

            await show(connection, call.output, call.settings.url, screen)

        call.run(body)
