"""The context of a command: its settings, output and connection."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agentctl.failures import usage_failure
from agentctl.options import given
from agentctl.output import Output
from agentctl.settings import DEFAULT_URL, CallSettings, Format, InvalidSetting, resolve

if TYPE_CHECKING:
    from agent_orchestrator.operations.table import Operation
    from agentctl.connection import DaemonConnection


Res = TypeVar("Res")


def here() -> Path:
    """Return the current directory.

    :raises Failure: if it was removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise usage_failure(
            "the current directory no longer exists: change to another one"
        ) from None


class Call:
    """One invocation of agentctl."""

    def __init__(self, settings: CallSettings) -> None:
        self.settings = settings
        self.output = Output(settings)

    @classmethod
    def current(cls, *, default_format: Format = "text", uses_daemon: bool = True) -> "Call":
        """Return the invocation of the current click context.

        :param default_format: the output format if none is given.
        :param uses_daemon: with False, several daemons may be running.
        :raises Failure: if a setting is invalid.
        """
        chosen = given(click.get_current_context())
        try:
            if uses_daemon:
                return cls(resolve(chosen, default_format=default_format))
            return cls(resolve({**chosen, "url": DEFAULT_URL}, {}))
        except InvalidSetting as error:
            raise usage_failure(str(error)) from None

    def ask(self, operation: "Operation[Any, Res]", **values: Any) -> "Res":
        """Connect, call an operation, and return its answer."""
        answers: list[Res] = []

        async def body(connection: "DaemonConnection") -> None:
            answers.append(await connection.call(operation, **values))

        self.run(body)
        return answers[0]

    def run(self, body: "Callable[[DaemonConnection], Awaitable[int | None]]") -> None:
        """Connect, run ``body``, and exit with the code it returns."""
        from agentctl.connection import run

        if code := run(self.settings, self.output, body):
            raise click.exceptions.Exit(code)
