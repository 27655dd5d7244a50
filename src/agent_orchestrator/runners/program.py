"""Finds an agent's program, or the exact reason why it cannot be run."""

import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_FIRST_LINE: Final = 256
"""Number of first bytes of a script in which Linux looks for its interpreter (BINPRM_BUF_SIZE)."""

_SHEBANG: Final = re.compile(rb"#![ \t]*([^ \t\n]+)[ \t]*([^\n]*)")


class NotRunnable(Exception):
    """The program cannot be run; the message says why."""


class NotInstalled(Exception):
    """The program of an agent does not exist or cannot be run. The message says what to do."""


def find_command(command: str, env: Mapping[str, str], agent: str, package: str) -> Path:
    """Return the absolute path of an agent's command: a path, or a name on the PATH of ``env``.

    :param agent: its name, for messages.
    :param package: the npm package that has it.
    :raises NotInstalled: if there is none.
    """
    if "/" in command or command.startswith("~"):
        found = Path(os.path.expanduser(command)).absolute()  # noqa: PTH111 - there may be no home
        if not os.path.isfile(found):
            raise NotInstalled(f"{agent} is not installed: there is no file {found}")
        return found
    on_path = shutil.which(command, path=env.get("PATH", os.defpath))
    if on_path is None:
        raise NotInstalled(
            f"{agent} is not installed: no {command!r} on the PATH; "
            f"install it with: npm install -g {package}"
        )
    return Path(on_path).absolute()


def require_executable(program: Path) -> Path:
    """Return the program.

    :raises NotInstalled: if it may not be executed.
    """
    if not os.access(program, os.X_OK):
        raise NotInstalled(f"{program} is not executable: run chmod +x {program}")
    return program


def absolute_program(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the arguments, with a relative path of the program made absolute from the current directory. A
    name without ``/`` is not changed.

    Otherwise the check in this directory and the start in the session's directory would use different
    files.
    """
    program, *rest = argv
    return (os.path.abspath(program) if "/" in program else program, *rest)  # noqa: PTH100


def locate(program: str, path: str | None) -> tuple[str, int]:
    """Return a program's file and its modification time in nanoseconds.

    :param path: the PATH in which the name is looked up.
    :raises NotRunnable: if there is no such program, or starting it would fail.
    """
    search = os.defpath if path is None else path
    located = program if "/" in program else shutil.which(program, path=search)
    if located is None:
        raise NotRunnable(f"{program} is not on the PATH")
    try:
        status = Path(located).stat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotRunnable(f"there is no file {located}") from None
    except OSError as error:
        raise NotRunnable(f"{located}: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise NotRunnable(f"{located} is a directory")
    if not stat.S_ISREG(status.st_mode) or not os.access(located, os.X_OK):
        raise NotRunnable(f"{located} is not executable")
    missing = _missing_interpreter(located, search)
    if missing is not None:
        raise NotRunnable(f"{located} cannot be run: its interpreter {missing}")
    return located, status.st_mtime_ns


def _missing_interpreter(program: str, path: str) -> str | None:
    """Return the problem with the interpreter that a script names; None without a problem or
    interpreter.
    """
    try:
        with Path(program).open("rb") as file:
            match = _SHEBANG.match(file.read(_FIRST_LINE))
    except OSError:  # a program may be executable without being readable
        return None
    if match is None:
        return None
    interpreter, argument = map(os.fsdecode, match.groups())
    if interpreter.startswith("/") and not os.path.exists(interpreter):
        return f"{interpreter!r} does not exist"
    if Path(interpreter).name != "env":
        return None
    words = argument.removeprefix("-S").split()
    if not words or words[0].startswith("-") or "=" in words[0]:
        return None
    return None if shutil.which(words[0], path=path) else f"{words[0]!r} is not on the PATH"
