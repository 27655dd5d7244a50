"""What every command begins with: the settings of this call, its output and its connection."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentctl.failures import usage_failure
from agentctl.options import given
from agentctl.output import Output
from agentctl.settings import CallSettings, Format, InvalidSetting, resolve

if TYPE_CHECKING:
    from agentctl.connection import DaemonConnection


def here() -> Path:
    """Return the directory the caller is in.

    :raises Failure: if it has been removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise usage_failure(
            "the directory you are in is not there any more: change to another one"
        ) from None


class Call:
    """One call of agentctl."""

    def __init__(self, settings: CallSettings) -> None:
        self.settings = settings
        self.output = Output(settings)

    @classmethod
    def current(cls, *, default_format: Format = "text") -> "Call":
        """Return the call the current click context belongs to.

        :param default_format: the format of its answer when none is given.
        :raises Failure: if a setting cannot be used.
        """
        try:
            chosen = given(click.get_current_context())
            return cls(resolve(chosen, default_format=default_format))
        except InvalidSetting as error:
            raise usage_failure(str(error)) from None

    def run(self, body: "Callable[[DaemonConnection], Awaitable[int | None]]") -> None:
        """Connect, run the body and end with its exit code."""
        from agentctl.connection import run

        if code := run(self.settings, self.output, body):
            raise click.exceptions.Exit(code)
