"""What codex may execute of what lies in a directory.

Codex 0.169 executes two things that it finds where it works, both outside its sandbox: what the
``.codex`` of a trusted directory configures, such as MCP servers, and the filters that the
configuration of a git repository names, as it asks git at each turn whether there are changes. Which
directories are trusted stands in its user's own ``config.toml``, by directory and by repository.

Codex keeps both read-only in the agent's directory. A confined agent can write them in any directory below.
Below the directory that a session shares with all sessions above it, neither is therefore executed.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.domain.errors import AgentFailed

_TRUST: Final = "projects"
"""The setting of codex that says which directories are trusted. One that is given for a thread takes the
place of the whole one that is given when the process starts; that of ``config.toml`` remains below."""

_GIT: Final = "GIT_TEST_ASSUME_DIFFERENT_OWNER"
"""The variable with which git (2.35.2 or newer) takes each repository for another user's and so reads
nothing of its configuration. It is for codex itself; its agents' commands have it switched off."""

_COMMANDS: Final = "shell_environment_policy.set"


def untrusted_directories(cwd: str, shared: str) -> tuple[str, ...]:
    """Return the directories whose configuration is not to be loaded: each from ``cwd`` up to where an
    agent's directory is also that of those above it, as written and without symbolic links.

    :param shared: see :attr:`~agent_orchestrator.ports.RunContext.shared_cwd`.
    """
    if cwd == shared:
        return ()
    real = os.path.realpath(cwd)
    kept = set(_upwards(os.path.realpath(shared)))
    if real in kept:
        return ()
    return tuple(sorted({*_upwards(cwd), *_upwards(real)} - kept))


def check_home(home: str, cwd: str, sandbox: str | None) -> None:
    """Raise where an agent that is confined to its directory could rewrite codex's own configuration.

    Codex 0.169 keeps the ``.codex`` right in the directory read-only, and no other home.

    :raises AgentFailed: ``invalid_config``, if the home lies elsewhere in the directory.
    """
    if sandbox != "workspace-write":
        return
    place, found = os.path.realpath(cwd), os.path.realpath(home)
    if place in _upwards(found) and found != f"{place.rstrip('/')}/.codex":
        problem = f"codex's home {found} is in the directory {place}, which the agent may write"
        raise AgentFailed(
            "invalid_config", f"{problem}: use another directory, or the sandbox read-only"
        )


def untrusted_environment(env: Mapping[str, str], distrusted: Sequence[str]) -> dict[str, str]:
    """Return the environment of a codex that works in such a directory."""
    return {**env, _GIT: "1"} if distrusted else dict(env)


def untrusted_config(
    distrusted: Sequence[str], config: Mapping[str, Any], extra_args: Sequence[str]
) -> dict[str, Any]:
    """Return the configuration, by dotted key, with which codex executes nothing that lies in these
    directories.

    :param config: what the provider configures, which may say which directories are trusted.
    :param extra_args: its further arguments. What these say of it would be lost, so that nothing at all
        is then trusted.
    """
    if not distrusted:
        return {}
    configured = config.get(_TRUST)
    trust = dict(configured) if isinstance(configured, Mapping) else {}
    denied = [*distrusted]
    dotted = [key for key in config if key.startswith(f"{_TRUST}.")]
    if dotted or any(_TRUST in argument for argument in extra_args):
        longest = max(distrusted, key=len), os.path.realpath(max(distrusted, key=len))
        denied += [path for one in longest for path in _upwards(one)]
    trust |= {path: {"trust_level": "untrusted"} for path in denied}
    return {_TRUST: trust, f"{_COMMANDS}.{_GIT}": "0"}


def _upwards(path: str) -> Iterator[str]:
    """Yield a path and all above it."""
    while True:
        yield path
        above = os.path.dirname(path)  # noqa: PTH120 - as text, which is what codex compares
        if above in (path, ""):
            return
        path = above
