"""Codex's own program for a person, on the thread of a session."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Session, Thread
from agent_orchestrator.operations.takeovers import Program
from agent_orchestrator.ports.runner import Handover
from agent_orchestrator.runners import record
from agent_orchestrator.runners.codex.argv import toml_value
from agent_orchestrator.runners.codex.locate import locate
from agent_orchestrator.runners.codex.probe import home_of
from agent_orchestrator.runners.codex.record import rollout_of
from agent_orchestrator.runners.program import NotInstalled


def home_in(env: Mapping[str, str]) -> Path:
    """Return codex's home with its symbolic links resolved. Blocks.

    :raises AgentFailed: if this user has none.
    """
    try:
        return Path(os.path.realpath(home_of(env)))  # Path.resolve raises for a loop of links
    except NotInstalled as problem:
        raise AgentFailed("provider_unavailable", str(problem)) from None


def handover(
    command: str,
    env: Mapping[str, str],
    session: Session,
    thread: Thread,
    options: Sequence[str],
    sandbox: str | None,
    policy: str | None,
) -> Handover:
    """Return the program that resumes a thread, and the thread with the end of its record. Blocks.

    ``--no-daemon``: otherwise codex 0.169 gives the thread to a server that stays when the program ends.

    :param options: arguments before the subcommand.
    :param policy: codex 0.169 has no ``untrusted`` on its command line, so it asks on request then.
    :raises AgentFailed: if codex is not installed, or has no record of the thread.
    """
    home = home_in(env)
    path = rollout_of(home, thread.id)
    try:
        program = str(locate(command, env))
        place = record.size_of(home, path)
    except NotInstalled as problem:
        raise AgentFailed("provider_unavailable", str(problem)) from None
    except OSError as error:
        raise AgentFailed("thread_missing", f"codex's record cannot be read: {error}") from None
    rights: list[str] = []
    if sandbox is not None:
        rights += ["--sandbox", sandbox]
    if policy is not None:
        rights += ["--ask-for-approval", "on-request" if policy == "untrusted" else policy]
    if session.model is not None:
        rights.append(f"--model={session.model}")
    argv = (program, *options, "resume", "--no-daemon", *rights, thread.id)
    marked = evolve(thread, state={**thread.state, record.PLACE: place})
    return Handover(Program(argv, session.cwd, {"CODEX_HOME": str(home)}), marked)


def options_of(
    extra_args: Sequence[str], profile: str | None, config: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the arguments of a provider before the subcommand."""
    own: list[str] = [*extra_args]
    if profile is not None:
        own += ["--profile", profile]
    for key, value in config.items():
        own += ["-c", f"{key}={toml_value(value)}"]
    return tuple(own)
