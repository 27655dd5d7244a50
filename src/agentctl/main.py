"""The entry point ``agentctl``. Importing it imports click and little else."""

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

_COMMANDS: Final = {
    "ask": "agentctl.commands.ask:ask",
    "session": "agentctl.commands.session:session",
    "message": "agentctl.commands.message:message",
    "run": "agentctl.commands.run:run",
    "events": "agentctl.commands.events:events",
    "request": "agentctl.commands.request:request",
    "top": "agentctl.commands.top:top",
    "tool": "agentctl.commands.tool:tool",
    "mcp": "agentctl.commands.mcp:mcp",
    "token": "agentctl.commands.token:token",
    "doctor": "agentctl.commands.doctor:doctor",
    "config": "agentctl.commands.config:config",
    "daemon": "agentctl.commands.daemon:daemon",
    "completion": "agentctl.commands.completion:completion",
}


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
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
    """Talk to coding agents through agentd: sessions, messages, runs and their events.

    Exit codes: 0 done, 1 the run failed or any other error, 2 usage, 3 daemon unreachable,
    4 not found, 5 not allowed, 6 conflict, 7 timed out, 130 interrupted.
    """


def main() -> NoReturn:
    """Run agentctl and leave with its exit code."""
    # Not at the top: who completes a command, or imports this, has no use for the library.
    from agent_orchestrator.encoding import ensure_utf8

    ensure_utf8()
    prepare_streams()
    _skip_unused_imports()
    if COMPLETION_VARIABLE in os.environ:
        cli.main(prog_name="agentctl", complete_var=COMPLETION_VARIABLE)
    raise SystemExit(invoke(sys.argv[1:]))


def _skip_unused_imports() -> None:
    """Keep httpx and httpcore from importing what they can use but this program does not.

    Where they are installed, for whomever, they cost more time than everything else a short call
    does. Both libraries take them as missing. Only for a process that is ours alone.
    """
    for name in ("h2", "pygments", "rich", "trio"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def invoke(arguments: Sequence[str]) -> int:
    """Run one call and return its exit code; errors are told on standard error."""
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
        # Whoever read our output has had enough (`| head`), which is no failure.
        silence(sys.stdout)
        silence(sys.stderr)
        return DONE
    except OSError as error:
        silence(sys.stdout)
        return _print_failure(file_failure(error), structured=structured)
    except RecursionError:
        nested = Failure("internal", "the daemon's answer is nested too deeply to be shown")
        return _print_failure(nested, structured=structured)
    except Exception as error:
        if os.environ.get("AGENTCTL_DEBUG"):
            raise
        kind = type(error).__name__
        return _print_failure(
            Failure("internal", f"{kind}: {error}", hint="AGENTCTL_DEBUG=1 shows where"),
            structured=structured,
        )
    return DONE


def wants_json(arguments: Sequence[str]) -> bool:
    """Tell whether errors shall be JSON, also those found before the options are understood."""
    for place, argument in enumerate(arguments):
        if argument == "--":
            return False
        if argument == "--format=json":
            return True
        if argument == "--format" and list(arguments[place + 1 : place + 2]) == ["json"]:
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
