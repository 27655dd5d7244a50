"""The command ``agentd``."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import click

from agent_orchestrator.domain.errors import ConfigError, StoreOpenError, UnknownDatabase
from agent_orchestrator.encoding import ensure_utf8
from agentd import settings as settings_module
from agentd.settings import FlagError, declared, environment

_EXAMPLES = """\b
Examples:
  agentd
  agentd --port 9000 --db /var/lib/agents/main.db --max-concurrency 8
  AGENTD_AUTH_TOKEN=… agentd --host 0.0.0.0
  agentd --config agentd.toml --log-format json 2>agentd.log
  agentd --print-config

The first INT or TERM signal lets running agents finish (--grace-s) and refuses new
work meanwhile; the second stops at once.
"""


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"agentd {version('agent-orchestrator')}")
        context.exit()


def _options() -> list[click.Parameter]:
    options: list[click.Parameter] = []
    for name, setting in declared().items():
        default = _default_text(name)
        env = f" [{', '.join(setting.env)}]" if setting.env else ""
        options.append(
            click.Option(
                [setting.flag, name],
                help=f"{setting.doc}{env}{default}",
                multiple=setting.many,
                metavar="|".join(setting.spec.choices) or setting.kind.__name__.upper(),
                default=() if setting.many else None,
            )
        )
    options += [
        click.Option(
            ["--config"],
            help="The configuration file. [AGENTD_CONFIG]  (default: agentd.toml, if it is there and trusted; see `agentctl config trust`)",
            metavar="PATH",
        ),
        click.Option(
            ["--print-config"],
            is_flag=True,
            help=("Print every setting and where it came from, and exit. Secrets are hidden."),
        ),
        click.Option(
            ["--ready-file"],
            help=(
                "A file to write, as JSON {url, pid}, once the daemon answers. "
                "Removed when it stops."
            ),
            metavar="PATH",
        ),
        click.Option(
            ["--log-max-mb"],
            type=click.IntRange(min=1),
            help=(
                "Maximum size in MiB of the log, if standard error is a file. A full "
                "log is renamed to NAME.1.  (default: no limit; `agentctl daemon "
                "start` sets 10)"
            ),
            metavar="N",
        ),
        click.Option(
            ["--doctor"],
            is_flag=True,
            help=(
                "Print problems and risks of these settings and this machine as JSON, "
                "and exit. For readable output use `agentctl doctor`."
            ),
        ),
        click.Option(
            ["--accept-loss"],
            is_flag=True,
            help="Start even if the database has lost commits.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version.",
        ),
    ]
    return options


def _default_text(name: str) -> str:
    default = getattr(settings_module.Settings(), name)
    return f"  (default: {default})" if default not in (None, ()) else ""


def run(
    config: str | None,
    ready_file: str | None,
    *,
    log_max_mb: int | None,
    print_config: bool,
    doctor: bool,
    accept_loss: bool,
    **flags: Any,
) -> None:
    """Run the daemon in the foreground, or print its settings or findings."""
    ensure_utf8()
    for option, path in (("--config", config), ("--ready-file", ready_file)):
        if path == "":
            raise _UsageError(f"{option}: must not be blank")
    try:
        Path.cwd()
    except OSError:
        click.echo(
            "agentd: the current directory no longer exists: change to another one", err=True
        )
        sys.exit(1)
    if doctor:
        click.echo(_doctor_report(config, flags))
        return
    try:
        settings = settings_module.load(flags, environment(), config)
        if print_config:
            from agentd.print_config import render_config

            click.echo(render_config(settings))
            return
        # Imported here, so that --help and --version need not load a web server.
        from agentd.daemon import run_daemon

        status = run_daemon(
            settings,
            ready_file,
            accept_loss=accept_loss,
            log_limit=None if log_max_mb is None else log_max_mb * 2**20,
        )
    except FlagError as error:
        raise _UsageError(str(error)) from None
    except UnknownDatabase as error:
        click.echo(f"agentd: {error}. {settings_module.UNKNOWN_DATABASE}", err=True)
        status = 1
    except (ConfigError, StoreOpenError) as error:
        for line in str(error).splitlines():
            click.echo(f"agentd: {line}", err=True)
        status = 1
    sys.exit(status)


def _doctor_report(config: str | None, flags: Mapping[str, Any]) -> str:
    """Return the findings for these settings as JSON."""
    import anyio

    from agent_orchestrator.operations.daemon import DoctorReport, Finding
    from agent_orchestrator.wire import codec
    from agentd.daemon import engine_config
    from agentd.doctor import findings_offline

    try:
        settings = settings_module.load(flags, environment(), config)
        report = anyio.run(findings_offline, settings, engine_config(settings))
    except ConfigError as error:
        hint = "agentd does not start until this is fixed"
        lines = str(error).splitlines()
        report = DoctorReport(
            ok=False,
            findings=tuple(Finding("error", "configuration", line, hint) for line in lines),
        )
    return codec.to_json(report)


class _UsageError(click.UsageError):
    """A wrong option, printed in one line like every other error."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"agentd: {self.format_message()} (see agentd --help)", file, err=file is None)


class _Command(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _UsageError(error.format_message(), ctx) from None


main = _Command(
    "agentd",
    params=_options(),
    callback=run,
    help=(
        "Run the gateway for coding agents: sessions, durable runs and event streams over HTTP.\n\n"
    )
    + _EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

if __name__ == "__main__":
    main()
