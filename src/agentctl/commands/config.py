"""``agentctl config``: trusted configuration files."""

from pathlib import Path
from typing import Any

import click

from agentctl.call import Call, here
from agentctl.failures import Failure
from agentctl.options import Group


@click.group(
    cls=Group,
    examples="""
    agentctl config trust
    """,
)
def config() -> None:
    """Say which configuration agentd may use."""


@config.command(
    examples="""
    agentctl config trust
    agentctl config trust ~/projects/site/agentd.toml
    """
)
@click.argument("file", type=click.Path(), default="agentd.toml")
def trust(*, file: str) -> None:
    """Show FILE, and record that you trust it as it is: agentd.toml here, if none is named.

    A configuration names programs to run. So agentd uses one that it finds in its directory only once
    you have trusted it in exactly this form; after a change, trust it again. A file that is named
    with --config or AGENTD_CONFIG needs no record.
    """
    call = Call.current()
    from agent_orchestrator import trusted_files
    from agent_orchestrator.user_state import user_state

    try:
        found = trusted_files.found_file(here() / Path(file))
    except OSError as error:
        raise Failure("not_found", f"{file} cannot be read: {error.strerror}") from None
    state = user_state()
    if state is None:
        raise Failure(
            "no_state_directory",
            "there is no directory to record it in that is yours",
            hint=f"set XDG_STATE_HOME to one, or start agentd with --config {found.path}",
        )
    try:
        trusted_files.trust(state, found)
    except OSError as error:
        raise Failure("not_recorded", f"{error.filename}: {error.strerror}") from None
    answer = {"path": str(found.path), "sha256": found.digest}

    def rendering(_: Any) -> list[str]:
        from agentctl.terminal import revealed

        shown = found.content.decode(errors="replace").splitlines()
        lines = [f"  {revealed(line)}" for line in shown]
        return [*lines, f"{found.path} is trusted as it is shown here"]

    call.output.answer(answer, rendering)
