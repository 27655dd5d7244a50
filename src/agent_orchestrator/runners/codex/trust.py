"""The directories whose contents codex may execute.

Codex 0.169 executes two things from its working directory, both outside its sandbox. One is the
configuration in the ``.codex`` of a trusted directory, such as MCP servers. The other is the filters in the
configuration of a git repository, because codex asks git for changes in each turn. The user's
``config.toml`` lists the trusted directories and repositories.

Codex makes both read-only in the agent's directory. But a confined agent can write them in any
subdirectory. So nothing is executed from below the directory that a session shares with all its ancestors.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.paths import upwards

_TRUST: Final = "projects"
"""The setting of codex for trusted directories. The value for a thread replaces the value for the
process completely; the one in ``config.toml`` remains."""

_GIT: Final = "GIT_TEST_ASSUME_DIFFERENT_OWNER"
"""With this variable git (2.35.2 or newer) treats each repository as another user's, and does not
read its configuration. It is for codex itself; commands of its agents do not get it."""

_COMMANDS: Final = "shell_environment_policy.set"


def untrusted_directories(cwd: str, shared: str) -> tuple[str, ...]:
    """Return the directories whose configuration must not be loaded, each as given and with symbolic links
    resolved. These are ``cwd`` and its parents, as far as they are below ``shared``.

    :param shared: see :attr:`~agent_orchestrator.ports.runner.RunContext.shared_cwd`.
    """
    if cwd == shared:
        return ()
    real = os.path.realpath(cwd)
    shared_paths = set(upwards(os.path.realpath(shared)))
    if real in shared_paths:
        return ()
    return tuple(sorted({*upwards(cwd), *upwards(real)} - shared_paths))


def check_home(home: str, cwd: str, sandbox: str | None) -> None:
    """Raise if an agent that is confined to its directory could change codex's own configuration. Codex
    0.169 makes only the ``.codex`` directly in that directory read-only.

    :raises AgentFailed: ``invalid_config``, if codex's home is elsewhere in the directory.
    """
    if sandbox != "workspace-write":
        return
    directory, real_home = os.path.realpath(cwd), os.path.realpath(home)
    if directory in upwards(real_home) and real_home != f"{directory.rstrip('/')}/.codex":
        problem = (
            f"codex's home {real_home} is in the directory {directory}, which the agent may write"
        )
        raise AgentFailed(
            "invalid_config", f"{problem}: use another directory, or the sandbox read-only"
        )


def untrusted_environment(env: Mapping[str, str], distrusted: Sequence[str]) -> dict[str, str]:
    """Return codex's environment, in which git reads no repository's configuration if there are untrusted
    directories.
    """
    return {**env, _GIT: "1"} if distrusted else dict(env)


def untrusted_config(
    distrusted: Sequence[str], config: Mapping[str, Any], extra_args: Sequence[str]
) -> dict[str, Any]:
    """Return the configuration, by dotted key, with which codex executes nothing from these
    directories.

    :param config: the provider's configuration, which may trust directories.
    :param extra_args: the provider's further arguments. If they set trust too, the result replaces their
        setting. Then all parents of the directories are untrusted as well.
    """
    if not distrusted:
        return {}
    configured = config.get(_TRUST)
    trust = dict(configured) if isinstance(configured, Mapping) else {}
    denied = [*distrusted]
    dotted = [key for key in config if key.startswith(f"{_TRUST}.")]
    if dotted or any(_TRUST in argument for argument in extra_args):
        longest = max(distrusted, key=len), os.path.realpath(max(distrusted, key=len))
        denied += [path for directory in longest for path in upwards(directory)]
    trust |= {path: {"trust_level": "untrusted"} for path in denied}
    return {_TRUST: trust, f"{_COMMANDS}.{_GIT}": "0"}
