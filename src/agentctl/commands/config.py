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
    """Control which configuration files agentd may use."""


@config.command(
    examples="""
    agentctl config trust
    agentctl config trust ~/projects/site/agentd.toml
    """
)
@click.argument("file", type=click.Path(), default="agentd.toml")
def trust(*, file: str) -> None:
    """Print FILE, and record that you trust its current content. Default: agentd.toml in this
    directory.

    A configuration file names programs to run. So agentd uses a file that it finds in its directory
    only if you trust it. After each change, trust it again. A file that is named with --config or
    AGENTD_CONFIG needs no record.
    """
    call = Call.current(uses_daemon=False)
    from agent_orchestrator import trusted_files
    from agent_orchestrator.user_state import user_state

    try:
        config = trusted_files.found_file(here() / Path(file))
    except OSError as error:
        raise Failure("not_found", f"{file} cannot be read: {error.strerror}") from None
    state = user_state()
    if state is None:
        raise Failure(
            "no_state_directory",
            "your state directory cannot be found, so the trust cannot be recorded",
            hint=f"set XDG_STATE_HOME to one, or start agentd with --config {config.path}",
        )
    try:
        trusted_files.trust(state, config)
    except OSError as error:
        raise Failure("not_recorded", f"{error.filename}: {error.strerror}") from None
    answer = {"path": str(config.path), "sha256": config.digest}

    def view() -> list[Any]:
        from agentctl.document import Text

        content = config.content.decode(errors="replace").splitlines()
        lines = [Text(f"  {line}", reveal=True) for line in content]
        return [*lines, f"{config.path} is trusted with the content shown above"]

    call.output.answer(answer, view)
