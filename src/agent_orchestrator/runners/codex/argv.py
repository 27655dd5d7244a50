"""The command line of ``codex exec``, as a pure function."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.domain.model import Sandbox

_THREAD_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

MAX_INPUT: Final = 1_048_575
"""Characters of a prompt: codex 0.169 refuses more than 1,048,576, and a byte order mark may go before
it (see ``runner.py``)."""


def is_thread_id(text: str) -> bool:
    """Tell whether a thread id can be handed to codex: one that begins with ``-`` is an option."""
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
    """Return the arguments that run one turn, with the prompt on stdin, where codex is started.

    The prompt goes by stdin and never stands here: an argument ends at 131,071 bytes, everyone on
    the machine can read it, and one that is ``resume`` or begins with ``-`` means something else.
    Codex 0.169 takes ``-C`` and ``-s`` before ``resume`` only, and without ``--disable
    unbounded_connection_retries`` it waits for ever for a model server that cannot be reached. The
    directory is ``.``, the one the process is in: a path would be resolved once more, when it may
    lead elsewhere; and left out, it would be what ``extra_args`` say.

    :param extra_args: what the user wants said before the subcommand.
    :param config: overrides of codex's configuration, by dotted key.
    :param output_schema: path of a file with the JSON Schema of the answer.
    :param images: paths of pictures that belong to the prompt. Codex 0.169 takes a comma for the end of
        a path.
    :param resume: the thread to go on with.
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
    """Return the arguments that start an app-server on stdin and stdout.

    What may differ between threads is no part of them.
    """
    argv = [*extra_args]
    if profile is not None:
        argv += ["--profile", profile]
    for key, value in (config or {}).items():
        argv += ["-c", f"{key}={toml_value(value)}"]
    return (*argv, "app-server", "--disable", "unbounded_connection_retries")


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it inline.

    :raises TypeError: if TOML cannot say it.
    """
    if isinstance(value, str):
        # A TOML basic string is a JSON string but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, Mapping):
        pairs = (f"{toml_value(str(key))} = {toml_value(part)}" for key, part in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(part) for part in value) + "]"
    raise TypeError(f"TOML cannot say {value!r}")
