"""The command line, where the program is found, and what codex's words mean."""

import tomllib

import pytest

from agent_orchestrator.domain.model import FAILURE_CODES, Usage
from agent_orchestrator.runners.codex.argv import exec_argv, is_thread_id, toml_value
from agent_orchestrator.runners.codex.failures import error_text, startup_failure, turn_failure
from agent_orchestrator.runners.codex.locate import locate
from agent_orchestrator.runners.codex.runner import usage_between
from agent_orchestrator.runners.program import NotInstalled
from agent_orchestrator.runners.proxies import without_proxy_for

ID = "01a202ef-619b-7890-a3fa-a04dce33eadb"


def test_the_command_line_without_options():
    assert exec_argv("/bin/codex") == (
        *("/bin/codex", "exec", "--json", "--skip-git-repo-check"),
        *("--disable", "unbounded_connection_retries", "-C", ".", "-"),
    )


def test_extra_arguments_and_profile_stand_before_the_subcommand():
    argv = exec_argv(
        "codex",
        extra_args=["--search", "-c", "a=1"],
        profile="deep",
        config={"model_reasoning_effort": "high"},
        sandbox="read-only",
        model="m",
        resume=ID,
    )
    assert argv == (
        *("codex", "--search", "-c", "a=1", "--profile", "deep"),
        *("-c", 'model_reasoning_effort="high"', "exec", "--json", "--skip-git-repo-check"),
        *("--disable", "unbounded_connection_retries", "-C", ".", "-s", "read-only"),
        *("--model=m", "resume", ID, "-"),
    )


@pytest.mark.parametrize("bad", ["", "-c", "--last", "a b", "a/b", "ä", "x" * 129, f"{ID}\n"])
def test_a_thread_id_that_could_be_an_option_is_refused(bad):
    assert not is_thread_id(bad)
    with pytest.raises(ValueError, match="not a thread id"):
        exec_argv("codex", resume=bad)


@pytest.mark.parametrize(
    "value",
    [True, 7, -1.5, "", 'a "b" \\ \n \t \x00 \x7f é 😀', [1, "a", [True]], {"a b": {"c": "d"}}, {}],
)
def test_configuration_overrides_are_written_as_toml(value):
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


def test_a_value_that_toml_cannot_express_is_refused():
    with pytest.raises(TypeError):
        toml_value(None)


# --- the program ----------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    """An npm installation in small: wrapper, link on the PATH, native package."""
    modules = tmp_path / "lib" / "node_modules"
    script = modules / "@openai" / "codex" / "bin" / "codex.js"
    script.parent.mkdir(parents=True)
    script.write_text("#!/usr/bin/env node\n")
    script.chmod(0o755)
    link = tmp_path / "bin" / "codex"
    link.parent.mkdir()
    link.symlink_to(script)
    return modules, link


def a_binary(path):
    path.parent.mkdir(parents=True)
    path.write_text("")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("machine", "name", "triple"),
    [
        ("x86_64", "codex-linux-x64", "x86_64-unknown-linux-musl"),
        ("aarch64", "codex-linux-arm64", "aarch64-unknown-linux-musl"),
    ],
)
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_the_native_binary_behind_the_wrapper_is_found(package, machine, name, triple, place):
    modules, link = package
    inner = modules / "@openai" / "codex" / "node_modules" if place == "inside" else modules
    binary = a_binary(inner / "@openai" / name / "vendor" / triple / "bin" / "codex")
    assert locate("codex", {"PATH": str(link.parent)}, machine=machine) == binary
    assert locate(str(link), {}, machine=machine) == binary


@pytest.mark.parametrize("machine", ["x86_64", "riscv64"])
def test_a_wrapper_without_its_binary_is_started_itself(package, machine):
    _, link = package
    assert locate(str(link), {}, machine=machine) == link


def test_any_other_program_is_used_as_it_is(tmp_path):
    script = a_binary(tmp_path / "bin" / "my-codex")
    assert locate("my-codex", {"PATH": str(script.parent)}) == script


def test_a_missing_program_is_not_installed(tmp_path):
    with pytest.raises(NotInstalled, match="npm install -g @openai/codex"):
        locate("codex", {"PATH": str(tmp_path)})
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("codex", "x" * 300, "file/codex", "loop", "loop/codex"):
        with pytest.raises(NotInstalled, match="there is no file"):
            locate(str(tmp_path / name), {})


def test_a_program_without_execute_permission_is_reported(tmp_path):
    (tmp_path / "codex").write_text("")
    with pytest.raises(NotInstalled, match="not executable: run chmod"):
        locate(str(tmp_path / "codex"), {})


# --- what went wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("auth_failed", "unexpected status 401 Unauthorized: Incorrect API key provided, url: u"),
        ("auth_failed", "Missing environment variable: `FAKE_KEY`."),
        ("auth_failed", "exceeded retry limit, last status: 401 Unauthorized"),
        ("rate_limited", "exceeded retry limit, last status: 429 Too Many Requests"),
        ("rate_limited", "stream disconnected before completion: Rate limit reached for m"),
        ("quota_exhausted", "You’ve hit your usage limit. Upgrade to Pro"),
        ("quota_exhausted", "Quota exceeded. Check your plan and billing details."),
        ("context_exceeded", "Codex ran out of room in the model's context window."),
        ("provider_unreachable", "Connection failed: error sending request"),
        ("provider_unreachable", "stream disconnected before completion: Transport error"),
        ("provider_error", "We’re currently experiencing high demand"),
        ("provider_error", "unexpected status 500 Internal Server Error: rate limit, they say"),
        ("provider_error", "unexpected status 404 Not Found: the path /401 is not here"),
        ("provider_error", "something new"),
    ],
)
def test_the_message_of_a_failed_turn_determines_its_code(code, message):
    assert code in FAILURE_CODES
    assert turn_failure(message) == code


@pytest.mark.parametrize(
    ("exit_code", "stderr", "code", "message"),
    [
        (2, "error: unexpected argument '--verbose' found", "invalid_config", "--verbose"),
        (1, "Error loading config.toml: x:1:2: bad", "invalid_config", "x:1:2"),
        (1, "Error: Model provider `x` not found", "invalid_config", "provider `x`"),
        (1, "Error: thread/resume: no rollout found for thread id x", "thread_missing", "x"),
        (1, "Error: thread x already has an active writer", "provider_error", "another process"),
        (1, "Error: the moon is full", "agent_crashed", "the moon is full"),
        (1, "", "agent_crashed", "exit code 1"),
        (0, "", "agent_crashed", "exit code 0"),
        (2, "", "agent_crashed", "exit code 2"),
        (-9, "", "agent_crashed", "SIGKILL"),
        (-11, "2026-01-01T00:00:00Z ERROR x: y", "agent_crashed", "SIGSEGV"),
        (-250, "", "agent_crashed", "signal 250"),
        (101, "thread 'main' panicked", "agent_crashed", "panicked"),
        (None, "", "agent_crashed", "None"),
    ],
)
def test_exit_code_and_stderr_determine_the_startup_failure(exit_code, stderr, code, message):
    found, said = startup_failure(exit_code, stderr)
    assert found == code
    assert code in FAILURE_CODES
    assert message in said


def test_logs_and_warnings_are_not_the_error():
    stderr = (
        "WARNING: proceeding, even though we could not create PATH aliases\n"
        "2026-01-01T00:00:00.1Z ERROR codex_core::session: failed to record\n"
        "Error: the one thing\n  caused by: that\n"
        "2026-01-01T00:00:00.2Z  WARN codex: bye\n"
    )
    assert error_text(stderr) == "Error: the one thing\n  caused by: that"


# --- usage ----------------------------------------------------------------------------------


def test_usage_is_the_increase_of_the_totals():
    before = {"input_tokens": 100, "cached_input_tokens": 10, "output_tokens": 5}
    after = {"input_tokens": 250, "cached_input_tokens": 60, "output_tokens": 9}
    assert usage_between(before, after) == Usage(150, 50, 4)
    assert usage_between({}, after) == Usage(250, 60, 9)


def test_totals_that_decreased_are_the_usage_themselves():
    before = {"input_tokens": 100, "output_tokens": 5}
    assert usage_between(before, {"input_tokens": 99, "output_tokens": 50}) == Usage(99, 0, 50)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p"}, None),
        ({"HTTP_PROXY": ""}, None),
        ({"HTTP_PROXY": "http://p"}, "127.0.0.1"),
        ({"all_proxy": "http://p", "no_proxy": "a,b"}, "a,b,127.0.0.1"),
        ({"http_proxy": "http://p", "NO_PROXY": "a", "no_proxy": "b"}, "a,127.0.0.1"),
    ],
)
def test_the_daemon_is_reached_past_proxies(env, expected):
    found = without_proxy_for(env, "http://127.0.0.1:8765")
    if expected is None:
        assert found == env
    else:
        assert (found["NO_PROXY"], found["no_proxy"]) == (expected, expected)
        others = {name: value for name, value in env.items() if name.lower() != "no_proxy"}
        assert others.items() <= found.items()
