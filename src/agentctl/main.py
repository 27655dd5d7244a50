"""The entry point ``agentctl``. Imports little besides click, to start fast."""

import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from agentctl.failures import DONE, INTERRUPTED, USAGE, Failure, file_failure
from agentctl.options import Group
from agentctl.output import print_failure
from agentctl.terminal import prepare_streams, put, silence

COMPLETION_VARIABLE: Final = "_AGENTCTL_COMPLETE"

_NAMES: Final = (
    "ask attach adopt chat session message run search events request top tool mcp provider token device notify "
    "doctor config daemon store completion"
)
_MODULES: Final = {"attach": "takeover", "adopt": "takeover", "chat": "screens", "top": "screens"}
_COMMANDS: Final = {
    name: f"agentctl.commands.{_MODULES.get(name, name)}:{name}" for name in _NAMES.split()
}
"""Where each command is defined, in the order of the help."""


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"agentctl {version('agent-orchestrator')}")
        context.exit()


@click.group(
    cls=Group,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples="""
    agentctl daemon start
    agentctl ask "Why does the build fail?"
    agentctl --format json run list --status running
    agentctl session create --field session.id
    """,
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version.",
)
def cli() -> None:
    """Control coding agents through agentd: sessions, messages, runs and events.

    Exit codes: 0 done, 1 the run failed or any other error, 2 usage, 3 daemon unreachable, 4 not
    found, 5 not allowed, 6 conflict, 7 timed out, 130 interrupted.
    """


def main() -> NoReturn:
    """Run agentctl and exit."""
    # Imported here: shell completion does not need the library.
    from agent_orchestrator.encoding import ensure_utf8

    ensure_utf8()
    prepare_streams()
    _skip_unused_imports()
    if COMPLETION_VARIABLE in os.environ:
        cli.main(prog_name="agentctl", complete_var=COMPLETION_VARIABLE)
    raise SystemExit(invoke(sys.argv[1:]))


def _skip_unused_imports() -> None:
    """Prevent httpx and httpcore from importing optional packages that agentctl does not use.

    If these are installed, importing them takes longer than the rest of a short command. Both
    libraries treat them as missing. This affects the whole process, so only ``main`` may call it.
    """
    for name in ("h2", "pygments", "rich", "trio"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def invoke(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors are printed to standard error."""
    structured = wants_json(arguments)
    try:
        with cli.make_context("agentctl", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.NoArgsIsHelpError as error:
        put(sys.stderr, error.format_message() + "\n")
        return USAGE
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.UsageError as error:
        return _print_failure(_usage_failure(error), structured=structured)
    except Failure as failure:
        return _print_failure(failure, structured=structured)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed it, as in `| head`. That is not an error.
        silence(sys.stdout)
        silence(sys.stderr)
        return DONE
    except OSError as error:
        silence(sys.stdout)
        return _print_failure(file_failure(error), structured=structured)
    except RecursionError:
        nested = Failure("internal", "the daemon's answer is nested too deeply to print")
        return _print_failure(nested, structured=structured)
    except Exception as error:
        if os.environ.get("AGENTCTL_DEBUG"):
            raise
        kind = type(error).__name__
        return _print_failure(
            Failure("internal", f"{kind}: {error}", hint="set AGENTCTL_DEBUG=1 to see where"),
            structured=structured,
        )
    return DONE


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether errors must be JSON. Works before the options are parsed."""
    for index, argument in enumerate(arguments):
        if argument == "--":
            return False
        if argument == "--format=json":
            return True
        if argument == "--format" and list(arguments[index + 1 : index + 2]) == ["json"]:
            return True
    return False


def _usage_failure(error: click.UsageError) -> Failure:
    command = error.ctx.command_path if error.ctx else "agentctl"
    message = error.format_message()
    return Failure("invalid_request", message, exit_code=USAGE, hint=f"try `{command} --help`")


def _print_failure(failure: Failure, *, structured: bool) -> int:
    try:
        print_failure(failure, structured=structured)
    except BrokenPipeError:
        silence(sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    main()
