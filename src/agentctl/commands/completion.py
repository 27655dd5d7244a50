"""``agentctl completion``: shell completion scripts."""

import click

from agentctl.options import Command


@click.command(
    cls=Command,
    examples="""
    agentctl completion bash > ~/.local/share/bash-completion/completions/agentctl
    agentctl completion zsh > "${fpath[1]}/_agentctl"
    agentctl completion fish > ~/.config/fish/completions/agentctl.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell."""
    from click.shell_completion import get_completion_class

    from agentctl.main import COMPLETION_VARIABLE, cli

    completion_class = get_completion_class(shell)
    assert completion_class is not None  # click supports all three shells
    # Only the template: click's ``source`` method runs bash to check its version.
    script = completion_class(cli, {}, "agentctl", COMPLETION_VARIABLE)
    click.echo(script.source_template % script.source_vars())
