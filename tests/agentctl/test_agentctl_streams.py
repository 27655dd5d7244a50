"""Standard streams that are closed, full or unreadable, and a directory that is gone."""

import json

import pytest
from driving import Ctl

FULL = "agentctl: the answer cannot be written: No space left on device\n"
CLOSED = "agentctl: the answer cannot be written: standard output is closed\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("agentctl daemon status >/dev/full", FULL),
        ("agentctl daemon status >&-", CLOSED),
        ("agentctl --help >/dev/full", FULL),
        ("agentctl --help >&-", CLOSED),
        ("agentctl completion bash >/dev/full", FULL),
        ("agentctl ask hi 2>/dev/null >/dev/full", ""),
    ],
)
def test_unwritable_stdout_is_an_error(ctl: Ctl, line: str, told: str) -> None:
    result = ctl.shell(line)
    assert (result.code, result.err) == (1, told)


def test_unwritable_stdout_is_a_json_error_with_format_json(ctl: Ctl) -> None:
    result = ctl.shell("agentctl --format json daemon status >&-")
    assert result.code == 1
    assert json.loads(result.err)["error"]["code"] == "output_failed"


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
def test_unwritable_stderr_does_not_change_the_answer_or_exit_code(ctl: Ctl, where: str) -> None:
    result = ctl.shell(f"agentctl ask hello --provider echo {where}")
    assert (result.code, result.out) == (0, "hello\n")
    assert ctl.shell(f"agentctl session get ses_no {where}").code == 4
    assert ctl.shell(f"agentctl nonsense {where}").code == 2
    assert ctl.shell(f"agentctl {where}").code == 2


def test_closed_standard_streams_keep_the_exit_code(ctl: Ctl) -> None:
    assert ctl.shell("agentctl session get ses_no <&- >&- 2>&-").code == 4


def test_an_error_into_a_closed_pipe_keeps_its_exit_code(ctl: Ctl) -> None:
    result = ctl.shell("{ agentctl session get ses_no 2>&1; echo $? >&2; } | :")
    assert result.err == "4\n"


@pytest.mark.parametrize(
    "command", ["run get -", "ask -", "message send ses_no --text -", "session import -"]
)
@pytest.mark.parametrize(
    ("where", "told"),
    [("<&-", "is closed"), ("0>/dev/null", "cannot be read: Bad file descriptor")],
)
def test_unreadable_stdin_is_an_error(ctl: Ctl, command: str, where: str, told: str) -> None:
    result = ctl.shell(f"agentctl {command} {where}")
    assert (result.code, result.err) == (2, f"agentctl: standard input {told}\n")


@pytest.mark.parametrize(
    "command",
    ["session create", "session create --cwd below", "ask hi", "daemon start -- --port 0"],
)
def test_a_command_that_needs_the_deleted_working_directory_says_so(ctl: Ctl, command: str) -> None:
    result = ctl.shell(f'd=$(mktemp -d ./gone.XXXXXX); cd "$d"; rmdir "../$d"; agentctl {command}')
    assert result.code == 2
    assert result.err == (
        "agentctl: the current directory no longer exists: change to another one\n"
    )


def test_other_commands_work_in_a_deleted_working_directory(ctl: Ctl) -> None:
    gone = 'd=$(mktemp -d ./gone.XXXXXX); cd "$d"; rmdir "../$d"; '
    result = ctl.shell(f"{gone} agentctl session create --cwd /tmp --field session.cwd")
    assert (result.code, result.out) == (0, "/tmp\n")


def test_a_file_that_cannot_be_used_is_named(ctl: Ctl) -> None:
    result = ctl.shell("agentctl daemon start -- --port 0 --db /proc/nowhere/agents.db")
    assert result.code == 1
    assert result.err == "agentctl: /proc/nowhere: No such file or directory\n"
