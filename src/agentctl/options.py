"""Click commands and groups with global options, examples and lazily imported subcommands."""

import difflib
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import click

from agentctl.failures import usage_failure

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

_GIVEN = "agentctl.given"
"""The key of the global options in ``meta``, which all contexts of an invocation share."""


class GlobalOption(click.Option):
    """An option of every command, accepted before or after the command's name."""


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    _refuse_empty(context, parameter, value)
    if value is not None and parameter.name:
        given(context)[parameter.name] = value


def _refuse_empty(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Raise if an option or argument is an empty text: a variable of a script may be unset."""
    if value == "" or (isinstance(value, tuple) and "" in value):
        raise click.BadParameter("must not be empty", context, parameter)


def given(context: click.Context) -> dict[str, Any]:
    """Return the global options given so far. Later ones override earlier ones."""
    values: dict[str, Any] = context.meta.setdefault(_GIVEN, {})
    return values


_GLOBAL: Final[Mapping[str, tuple[str | None, str]]] = {
    "--url": (
        "URL",
        """The address of agentd.  [env: AGENTCTL_URL; default: the running daemon of this
        user, else http://127.0.0.1:8765]""",
    ),
    "--auth-token": ("TOKEN", "Your token.  [env: AGENTCTL_AUTH_TOKEN]"),
    "--ca-file": (
        "FILE",
        """Certificates to trust (PEM) with an https URL.  [env: AGENTCTL_CA_FILE;
        default: the system's]""",
    ),
    "--format": (
        None,
        """json: one compact document, or one per line for streams.  [default: text;
        json for `tool`]""",
    ),
    "--field": ("A.B.C", "Print only the value at this path of the JSON answer."),
    "--wide": (None, "Show all columns of tables and whole ids on a terminal."),
}


def global_options() -> list[click.Option]:
    """Return new instances of the options that every command takes."""
    kinds: dict[str, dict[str, Any]] = {
        "--format": {"type": click.Choice(["text", "json"])},
        "--wide": {"is_flag": True, "default": None},
    }
    return [
        GlobalOption(
            [name],
            expose_value=False,
            callback=_remember,
            metavar=metavar,
            help=" ".join(help_.split()).replace(". [", ".  ["),
            **kinds.get(name, {}),
        )
        for name, (metavar, help_) in _GLOBAL.items()
    ]


class _SectionedHelp:
    """Help in sections: the command's options, global options, examples."""

    examples: str = ""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        command_options: list[tuple[str, str]] = []
        everywhere: list[tuple[str, str]] = []
        for parameter in self.get_params(context):  # type: ignore[attr-defined]
            record = parameter.get_help_record(context)
            if record is not None and not isinstance(parameter, click.Argument):
                (everywhere if isinstance(parameter, GlobalOption) else command_options).append(
                    record
                )
        if command_options:
            with formatter.section("Options"):
                formatter.write_dl(command_options)
        if isinstance(self, click.Group):
            self.format_commands(context, formatter)
        with formatter.section("Before or after any command"):
            formatter.write_dl(everywhere)

    def format_epilog(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line.strip()}\n")


class Command(_SectionedHelp, click.Command):
    """A command.

    :param examples: command lines for the help, one per line.
    """

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:
        settings["params"] = [*(settings.get("params") or ()), *global_options()]
        super().__init__(*args, **settings)
        self.examples = examples

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        remaining = super().parse_args(context, args)
        if not context.resilient_parsing:
            for parameter in self.params:
                # The API says whether a message or an answer may be empty; agentd checks its options.
                if parameter.name != "text" and parameter.type is not click.UNPROCESSED:
                    _refuse_empty(context, parameter, context.params.get(parameter.name or ""))
        return remaining


class Number(click.FloatRange):
    """A number between two bounds. Click's own type lets NaN pass any bound."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("must be a number", param, ctx)
        return number


MAX_WAIT_S: Final = 2_592_000
"""Maximum of ``--timeout-s`` for a run or an answer: as long as a question may be open."""

MAX_DAEMON_WAIT_S: Final = 86_400
"""Maximum of ``--timeout-s`` for the start or stop of a daemon."""


def timeout_option(doc: str) -> Callable[[F], F]:
    """Add the time limit of a wait to a command."""
    help_ = f"{doc} After that, the exit code is 7.  [default: no limit]"
    return click.option("--timeout-s", type=Number(0, MAX_WAIT_S), help=help_)


_SENTENCE: Final = 1000
"""An upper bound for the length of the first sentence in a command's help."""


class Group(_SectionedHelp, click.Group):
    """A group of commands.

    :param lazy: commands by name, as ``module:attribute``. They are imported on use.
    """

    command_class = Command

    def __init__(
        self,
        *args: Any,
        examples: str = "",
        lazy: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        settings["params"] = [*(settings.get("params") or ()), *global_options()]
        super().__init__(*args, **settings)
        self.examples = examples
        self._lazy = dict(lazy or {})

    def list_commands(self, _: click.Context) -> list[str]:
        return [*self._lazy, *self.commands]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self._lazy:
            return super().get_command(context, name)
        module, _, attribute = self._lazy[name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their whole first sentence. Click would cut it to one line."""
        commands = [(name, self.get_command(context, name)) for name in self.list_commands(context)]
        rows = [
            (name, command.get_short_help_str(limit=_SENTENCE))
            for name, command in commands
            if command is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = self.list_commands(context)
        if name in known or name.startswith("-") or context.resilient_parsing:
            return super().resolve_command(context, args)
        message = f"unknown command {name!r} in `{context.command_path}`."
        if close := difflib.get_close_matches(name, known, n=2):
            message += f" Did you mean {' or '.join(close)}?"
        raise click.UsageError(message, context)


class IdType(click.ParamType):  # type: ignore[type-arg]
    """An id, whole or abbreviated. The shell completes it, and shows the titles."""

    name = "id"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(
        self, context: click.Context, _: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        from agentctl.ids import suggestions

        found = suggestions(context, self.kind, incomplete)
        return [CompletionItem(id_, help=title) for id_, title in found]


ID_HELP: Final = (
    "Its beginning or end is enough, or @last, or @N of the last list. - reads standard input."
)


def session_option(doc: str) -> Callable[[F], F]:
    """Add an optional session to a command, which has other arguments."""
    help_ = f"{doc} {ID_HELP}"
    return click.option("--session-id", metavar="ID", type=IdType("session"), help=help_)


def identified(kind: str, *, required: bool = True, then: str | None = None) -> Callable[[F], F]:
    """Add an id to a command, as ``--<kind>-id ID`` or the first argument. ``-`` reads standard input.

    :param then: the name of an argument after it, in brackets if it may be missing.
    """
    name = f"{kind}_id"
    metavar = f"[{kind.upper()}_ID]" + (f" {then.upper()}" if then else "")
    may_be_missing, follower = (then or "").startswith("["), (then or "").strip("[]")

    def decorate(function: F) -> F:
        help_ = f"The id of the {kind}. {ID_HELP}"

        @click.option(f"--{kind}-id", name, metavar="ID", help=help_, type=IdType(kind))
        @click.argument("arguments", metavar=metavar, nargs=-1, type=IdType(kind))
        @keeping_name(function)
        def wrapper(**values: Any) -> Any:
            option = values.pop(name)
            remaining: list[str] = [*values.pop("arguments")]
            if follower:
                if not remaining and not may_be_missing:
                    raise usage_failure(f"{follower} is missing")
                is_given = len(remaining) > (0 if option or not may_be_missing else 1)
                values[follower] = remaining.pop() if is_given else None
            if remaining[1:]:
                raise usage_failure(f"got unexpected extra arguments ({' '.join(remaining[1:])})")
            argument = remaining[0] if remaining else None
            if option and argument and option != argument:
                raise usage_failure(
                    f"two different ids of the {kind} are given: {option} and {argument}"
                )
            chosen = option or argument
            if not chosen and required:
                raise usage_failure(f"name the {kind}: --{kind}-id ID (use - for standard input)")
            return function(**values, **{name: read_id(chosen) if chosen else None})

        return wrapper  # type: ignore[return-value]

    return decorate


def keeping_name(function: Callable[..., Any]) -> Callable[[F], F]:
    """Copy the name, docstring and click options of a function to its wrapper."""

    def decorate(wrapper: F) -> F:
        wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
        parameters: Sequence[Any] = getattr(function, "__click_params__", ())
        wrapper.__click_params__ = list(parameters)  # type: ignore[attr-defined]
        return wrapper

    return decorate


def read_id(value: str) -> str:
    """Return an id. For ``-``, return the first line of standard input.

    :raises Failure: if standard input is empty or cannot be read.
    """
    if value != "-":
        return value
    # The stream buffers what follows the line, which may be a text option's value.
    line = _read(lambda stream: stream.readline()).decode(errors="replace").strip()
    if not line:
        raise usage_failure("standard input has no id")
    return line


def read_text(value: str) -> str:
    """Return a text. For ``-``, return all of standard input.

    :raises Failure: if standard input is not UTF-8 or cannot be read.
    """
    if value != "-":
        return value
    try:
        return _read(lambda stream: stream.read()).decode()
    except UnicodeDecodeError as error:
        raise usage_failure(f"standard input is not UTF-8: byte {error.start}") from None


def read_object(value: str, option: str) -> dict[str, Any]:
    """Return the JSON object in an option's value. ``-`` reads it from standard input.

    :raises Failure: if it is not a JSON object.
    """
    return parse_object(read_text(value), option)


def parse_object(text: str, option: str) -> dict[str, Any]:
    """Return the JSON object in a text.

    :param option: the option's name, for error messages.
    :raises Failure: if it is not a JSON object.
    """
    # Imported here, because most commands parse no JSON and start faster without it.
    from agent_orchestrator.domain.errors import InvalidRequest
    from agent_orchestrator.wire import strict_json

    try:
        value = strict_json.loads(text.encode("utf-8", "surrogateescape"), field=option)
    except InvalidRequest as error:
        raise usage_failure(f"{option} {error.details['fields'][option]}") from None
    if not isinstance(value, dict):
        raise usage_failure(f"{option} must be a JSON object")
    return value


def _read(take: Callable[[BinaryIO], bytes]) -> bytes:
    if sys.stdin is None:
        raise usage_failure("standard input is closed")
    try:
        return take(sys.stdin.buffer)
    except OSError as error:
        raise usage_failure(f"standard input cannot be read: {error.strerror or error}") from None
