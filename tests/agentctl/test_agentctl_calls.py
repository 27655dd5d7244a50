"""What can be typed: settings, help, exit codes, fields. Nothing here needs a daemon."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from driving import COMMAND, Ctl, environment

from agent_orchestrator.domain import errors
from agentctl import failures, settings
from agentctl.main import cli, wants_json
from agentctl.options import Group
from agentctl.output import Output, as_typed, compact, value_at


def commands() -> Iterator[tuple[str, click.Command]]:
    def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                yield from walk(f"{path} {name}", child)

    return walk("agentctl", cli)


EVERY = dict(commands())


def test_the_list_of_commands_is_complete() -> None:
    leaves = {path for path, command in EVERY.items() if not isinstance(command, click.Group)}
    assert leaves == {
        f"agentctl {name}"
        for name in [
            "ask", "completion", "daemon start", "daemon stop", "daemon status", "session create",
            "session list", "session get", "session seen", "session link", "session links", "session unlink", "session model", "session move", "session close", "message send", "message list",
            "run create", "run get", "run list", "run wait", "run cancel", "run transition",
            "run diagnose", "run retry", "session rename", "session reopen", "session prune", "session retain", "session export", "session archive", "session import", "events list", "events tail", "session tree", "session share", "tool session-spawn",
            "tool session-send", "tool session-wait", "tool session-list",
            "tool session-reply-parent", "request list", "request show", "request approve",
            "request deny", "request answer", "request extend", "daemon audit",
            "device add", "device list", "device revoke", "token create", "token list", "token revoke",
            "daemon backup", "daemon check", "provider list", "provider check", "attach", "adopt", "chat", "session diff", "request watch", "mcp", "top", "doctor", "config trust", "store copy", "search",
            "session notices", "session model", "notify list", "notify retry", "notify test", "notify browsers", "notify set", "notify forget",
        ]
    }  # fmt: skip


@pytest.mark.parametrize("path", EVERY)
def test_every_command_has_help_with_examples(path: str) -> None:
    command = EVERY[path]
    text = command.get_help(click.Context(command, info_name=path))
    for option in ("--url", "--auth-token", "--format", "--field", "AGENTCTL_URL"):
        assert option in text
    examples = text.partition("Examples:\n")[2].strip().splitlines()
    assert examples
    assert all("agentctl " in line for line in examples)
    assert command.help
    for line in text.partition("Commands:\n")[2].partition("\n\n")[0].splitlines():
        assert not line.endswith("..."), "a summary is cut off"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.fixture
def nowhere(tmp_path: Path) -> Ctl:
    """Calls to a port nobody listens on."""
    return Ctl("http://127.0.0.1:1", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "get", "run_1"],
        ["session", "create"],
        ["message", "send", "--session-id", "s", "--text", "x", "--wait"],
        ["events", "tail", "--session-id", "s", "--follow"],
        ["run", "wait", "--run-id", "r"],
        ["ask", "x"],
        ["tool", "session-spawn", "--parent-run-id", "r", "--task", "x"],
        ["session", "tree", "s"],
        ["daemon", "status"],
        ["daemon", "stop"],
    ],
)
def test_an_unreachable_daemon_is_one_line_with_a_hint(nowhere: Ctl, arguments: list[str]) -> None:
    result = nowhere(*arguments)
    assert (result.code, result.out) == (failures.UNREACHABLE, "")
    assert result.err == (
        "agentctl: cannot reach http://127.0.0.1:1: is agentd running? "
        "start it with `agentctl daemon start`\n"
    )


def test_an_unreachable_daemon_is_a_json_error(nowhere: Ctl) -> None:
    result = nowhere("--format", "json", "run", "get", "run_1")
    assert result.code == failures.UNREACHABLE
    assert json.loads(result.err)["error"]["code"] == "unreachable"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rnu"], "Did you mean run?"),
        (["run", "gte"], "Did you mean get?"),
        (["run", "get"], "name the run"),
        (["run", "get", "a", "--run-id", "b"], "two different ids"),
        (["run", "get", "--nope"], "No such option"),
        (["run", "get", "a", "--format", "xml"], "xml"),
        (["message", "send", "--session-id", "s"], "--text"),
        (["message", "send", "s", "--text", "x", "--wait", "--follow"], "only one of"),
        (["session", "create", "--metadata", "[1]"], "must be a JSON object"),
        (["session", "create", "--metadata", "{"], "not JSON"),
        (["session", "create", "--metadata", '{"a": 1, "a": 2}'], "has the key 'a' twice"),
        (["session", "create", "--metadata", '{"a":' * 5_000 + "1" + "}" * 5_000], "too deeply"),
        (["ask", "x", "--output-schema", "/dev/null"], "not JSON"),
        (["ask", "x", "--output-schema", "/no/such/file"], "cannot be read"),
        (["message", "send", "s", "--text", " "], "text: must not be blank"),
        (["events", "list", "s", "--limit", "0"], "0 is not in the range 1<=x<=1000"),
        (["run", "get", "x" * 200], "run_id: must be at most 128"),
        (["run", "wait", "r", "--timeout-s", "-1"], "--timeout-s"),
        (["session", "create", "--cwd", ""], "'--cwd': must not be empty"),
        (["session", "move", "s", ""], "must not be empty"),
        (["--url", "", "session", "list"], "'--url': must not be empty"),
        (["request", "approve", ""], "must not be empty"),
        (["message", "send", "s", "--text", ""], "text: must not be blank"),
        (
            ["tool", "session-wait", "r", "--timeout-s", "inf"],
            "'--timeout-s': inf is not in the range",
        ),
        (["tool", "session-wait", "r", "--timeout-s", "nan"], "'--timeout-s': must be a number"),
        (["tool", "session-spawn", "--parent-run-id", "r"], "--task"),
        (["tool", "session-spawn", "--task", "x"], "name the parent"),
        (
            [
                "tool",
                "session-spawn",
                "--task",
                "x",
                "--parent-run-id",
                "r",
                "--parent-session-id",
                "s",
            ],
            "only one of",
        ),
        (
            ["tool", "session-spawn", "--task", " ", "--parent-run-id", "r"],
            "task: must not be blank",
        ),
        (["tool", "session-send", "--session-id", "s"], "--text"),
        (["tool", "session-wait"], "name the run"),
        (["tool", "session-list"], "name the parent session"),
        (["--url", "ftp://x", "daemon", "status"], "--url must be like"),
        (["--auth-token", "é", "daemon", "status"], "token"),
        (["--url", "http://example.com", "daemon", "start"], "another machine"),
    ],
)
def test_a_usage_error_is_one_line_that_names_the_problem(
    nowhere: Ctl, arguments: list[str], told: str
) -> None:
    for extra in ([], ["--format=json"]):
        if extra and "xml" in arguments:
            continue
        result = nowhere(*extra, *arguments)
        assert result.out == ""
        assert told in result.err
        assert len(result.err.splitlines()) == 1
        expected = failures.FAILED if "daemon start" in " ".join(arguments) else failures.USAGE
        assert result.code == expected
        if extra:
            assert json.loads(result.err)["error"]["code"] == "invalid_request"


def _tried(command: click.Command, parameter: click.Parameter, value: str) -> str:
    """Return the error of a call with a value for an option or argument, and others as they must be."""
    words: list[str] = []
    for one in command.params:
        if one is parameter or one.required:
            usual = one.type.choices[0] if isinstance(one.type, click.Choice) else "1"
            word = value if one is parameter else str(usual)
            words += [one.opts[0], word] if isinstance(one, click.Option) else [word]
    with pytest.raises(click.BadParameter) as raised:
        command.make_context("x", words)
    assert raised.value.param is parameter
    return raised.value.message


@pytest.mark.parametrize("path", [path for path in EVERY if not isinstance(EVERY[path], Group)])
def test_no_option_takes_an_empty_text_or_a_number_without_a_bound(path: str) -> None:
    command = EVERY[path]
    for parameter in command.params:
        if isinstance(parameter.type, click.FloatRange):
            for number in ("inf", "-inf", "nan", "-1", "1e400", "1e300"):
                assert _tried(command, parameter, number), (parameter.name, number)
        elif isinstance(parameter.type, click.IntRange):
            for number in ("inf", "nan", "-1", "1.5", "1e400"):
                assert _tried(command, parameter, number), (parameter.name, number)
        elif parameter.name != "text" and isinstance(
            parameter.type, (type(click.STRING), click.Path)
        ):
            assert _tried(command, parameter, "") == "must not be empty", parameter.name


def test_a_group_without_a_command_shows_its_help(nowhere: Ctl) -> None:
    result = nowhere("run")
    assert (result.code, result.out) == (failures.USAGE, "")
    assert "Examples:" in result.err


def test_a_missing_or_invalid_value_on_stdin_is_a_usage_error(nowhere: Ctl) -> None:
    assert nowhere("run", "get", "-").code == failures.USAGE
    result = nowhere("message", "send", "--session-id", "-", "--text", "-", stdin=b"ses_1\n\xff")
    assert result.code == failures.USAGE
    assert "not UTF-8" in result.err


def test_every_error_of_the_daemon_has_an_exit_code() -> None:
    def kinds(kind: type[errors.OrchestratorError]) -> Iterator[type[errors.OrchestratorError]]:
        for child in kind.__subclasses__():
            yield child
            yield from kinds(child)

    codes = {kind.code: kind for kind in kinds(errors.OrchestratorError)}
    assert set(codes) == set(failures.EXIT_CODES)
    for code, kind in codes.items():
        exit_code = failures.failure_of(kind("no")).exit_code
        assert (exit_code == failures.CONFLICT) == issubclass(kind, errors.Conflict), code
    assert failures.EXIT_CODES["not_found"] == 4
    assert failures.EXIT_CODES["unauthorized"] == failures.EXIT_CODES["forbidden"] == 5
    assert failures.EXIT_CODES["invalid_request"] == 2


def test_options_override_environment_variables_and_defaults(tmp_path: Path) -> None:
    nothing = {"XDG_STATE_HOME": str(tmp_path)}  # no daemon of another test or of the user
    environ = {"AGENTCTL_URL": "http://a:1/", "AGENTCTL_AUTH_TOKEN": "t"}
    told = settings.resolve({}, environ)
    assert (told.url, told.token, told.host, told.port) == ("http://a:1", "t", "a", 1)
    assert settings.resolve({"url": "b:2", "auth_token": "u"}, environ).url == "http://b:2"
    assert settings.resolve({}, nothing).url == settings.DEFAULT_URL
    assert settings.resolve({}, nothing | {"AGENTCTL_URL": ""}).is_local
    assert settings.resolve({}, nothing, default_format="json").structured
    assert not settings.resolve({"format": "text"}, nothing, default_format="json").structured
    assert not settings.resolve({"url": "https://example.com"}, nothing).is_local
    assert settings.resolve({"url": "http://[::1]:5"}, nothing).is_local
    assert "s3cret" not in repr(settings.resolve({"auth_token": "s3cret"}, nothing))
    for url in ("http://", "http://a:99999", "x://y", "http://[a"):
        with pytest.raises(settings.InvalidSetting):
            settings.resolve({"url": url}, nothing)


def test_a_field_path_finds_a_value_or_raises() -> None:
    plain = {"a": {"b": [{"c": None}, "x"]}, "n": 1}
    assert value_at(plain, "a.b.0.c") is None
    assert value_at(plain, "a.b.1") == "x"
    for path in ("", "a.c", "a.b.2", "a.b.x", "n.a", "a.b.1.0", "."):
        with pytest.raises(LookupError):
            value_at(plain, path)


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("x y", "x y"),
        (1, "1"),
        (True, "true"),
        (None, "null"),
        ({"a": [1, "\x85"]}, '{"a":[1,"\\u0085"]}'),
    ],
)
def test_a_field_is_printed_bare(
    value: object, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Output(settings.CallSettings(format="json", field="a.b")).answer(
        {"a": {"b": value}}, lambda _: ()
    )
    assert capsys.readouterr().out == printed + "\n"


def test_suggested_commands_use_the_callers_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "agentctl: `agentctl run wait` or /opt/agentctl run get"
    assert as_typed(text) == text
    monkeypatch.setenv("AGENTCTL_PROGRAM", "./my\\ bin/agentctl")
    assert as_typed(text) == "agentctl: `./my\\ bin/agentctl run wait` or /opt/agentctl run get"


def test_json_is_one_line_with_control_characters_escaped() -> None:
    text = compact({"a": "é\u2028\x85\x9b\n\x1b\x7f"})
    assert text == '{"a":"é\\u2028\\u0085\\u009b\\n\\u001b\\u007f"}'
    assert json.loads(text) == {"a": "é\u2028\x85\x9b\n\x1b\x7f"}


@pytest.mark.parametrize(
    ("arguments", "wants"),
    [("--format json x", True), ("x --format=json", True), ("x --format text", False),
     ("x -- --format json", False), ("x --format", False)],
)  # fmt: skip
def test_the_json_format_is_recognised_anywhere_in_the_arguments(
    arguments: str, *, wants: bool
) -> None:
    assert wants_json(arguments.split()) is wants


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed_for_each_shell(nowhere: Ctl, shell: str) -> None:
    result = nowhere("completion", shell)
    assert result.code == 0
    assert "_AGENTCTL_COMPLETE" in result.out


@pytest.mark.parametrize(
    ("words", "offered"),
    [("agentctl ", "session"), ("agentctl run d", "diagnose"), ("agentctl --for", "--format"),
     ("agentctl message send --when-busy ", "interrupt")],
)  # fmt: skip
def test_commands_options_and_values_are_completed(words: str, offered: str) -> None:
    done = subprocess.run(
        COMMAND,
        env=environment(
            _AGENTCTL_COMPLETE="bash_complete",
            COMP_WORDS=words,
            COMP_CWORD=str(len(words.split(" ")) - 1),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"plain,{offered}\n" in done.stdout


def _imported(code: str) -> set[str]:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport sys; print(*(one for one in sys.modules if sys.modules[one] is not None))",
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.split())


def test_commands_import_only_the_libraries_they_need() -> None:
    imported = _imported("import agentctl.main")
    assert not imported & {"anyio", "asyncio", "cattrs", "httpx", "psutil", "agent_orchestrator"}
    hidden = "from agentctl.main import _skip_unused_imports; _skip_unused_imports(); "
    imported = _imported(hidden + "import agentctl.follow, agentctl.commands.daemon")
    assert "httpx" in imported
    assert not imported & {
        "quart", "hypercorn", "apsw", "agentd", "psutil", "agent_orchestrator.engine",
        "agent_orchestrator.stores", "rich", "rich.console", "textual",
    }  # fmt: skip
