"""The command line of ``codex exec``, as a pure function."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.domain.model import Sandbox

_THREAD_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

MAX_INPUT: Final = 1_048_575
"""Maximum characters of a prompt. Codex 0.169 accepts 1,048,576, and a byte order mark may be added (see
``runner.py``)."""


def is_thread_id(text: str) -> bool:
    """Return whether a text is a thread id that can be an argument. One that begins with ``-`` would be an
    option.
    """
    return _THREAD_ID.fullmatch(text) is not None


def exec_argv(
    program: str,
    *,
    extra_args: Sequence[str] = (),
    profile: str | None = None,
    config: Mapping[str, Any] | None = None,
    sandbox: Sandbox | None = None,
    model: str | None = None,
    output_schema: str | None = None,
    images: Sequence[str] = (),
    resume: str | None = None,
) -> tuple[str, ...]:
    """Return the arguments for one turn, with the prompt on stdin, in the directory of the process.

    The prompt is not an argument: an argument has at most 131,071 bytes, every user of the machine
    can read it, and ``resume`` or a leading ``-`` has another meaning. Codex 0.169 accepts ``-C``
    and ``-s`` only before ``resume``. Without ``--disable unbounded_connection_retries`` it retries
    an unreachable model server forever. The directory is ``.``, because a path would be resolved
    again, and could lead elsewhere. Without ``-C``, ``extra_args`` could set another directory.

    :param extra_args: the user's arguments before the subcommand.
    :param config: overrides of codex's configuration, by dotted key.
    :param output_schema: path of a file with the JSON Schema of the answer.
    :param images: paths of pictures that belong to the prompt. In codex 0.169 a comma ends a path.
    :param resume: the thread to continue.
    :raises ValueError: if ``resume`` is not a thread id, or a path has a comma.
    """
    argv = [program, *extra_args]
    if profile is not None:
        argv += ["--profile", profile]
    for key, value in (config or {}).items():
        argv += ["-c", f"{key}={toml_value(value)}"]
    argv += ["exec", "--json", "--skip-git-repo-check"]
    argv += ["--disable", "unbounded_connection_retries", "-C", "."]
    if sandbox is not None:
        argv += ["-s", sandbox]
    if model is not None:
        argv.append(f"--model={model}")
    if output_schema is not None:
        argv.append(f"--output-schema={output_schema}")
    if any("," in path for path in images):
        raise ValueError(f"codex accepts no path with a comma: {', '.join(images)}")
    argv += [f"--image={path}" for path in images]
    if resume is not None:
        if not is_thread_id(resume):
            raise ValueError(f"not a thread id: {resume!r}")
        argv += ["resume", resume]
    argv.append("-")
    return tuple(argv)


def app_server_arguments(
    *,
    extra_args: Sequence[str] = (),
    profile: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Return the arguments that start an app-server on stdin and stdout. They are the same for all threads."""
    argv = [*extra_args]
    if profile is not None:
        argv += ["--profile", profile]
    for key, value in (config or {}).items():
        argv += ["-c", f"{key}={toml_value(value)}"]
    return (*argv, "app-server", "--disable", "unbounded_connection_retries")


def toml_value(value: Any) -> str:
    """Return a value as inline TOML.

    :raises TypeError: if TOML cannot express it.
    """
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that TOML requires an escape for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, Mapping):
        pairs = (f"{toml_value(str(key))} = {toml_value(part)}" for key, part in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(part) for part in value) + "]"
    raise TypeError(f"TOML cannot express {value!r}")
