"""The variables of an engine's environment that agents do not inherit.

These variables tie a program to one directory or one process: the one that the engine was started
in, from or by. An agent works elsewhere, and longer.
"""

from collections.abc import Iterable
from typing import Final

from attrs import frozen

from agent_orchestrator.known_runners import KNOWN_AGENTS


@frozen
class HostVariables:
    """Variables that tie a program to one thing.

    :param what: that thing.
    :param names: the variables.
    :param prefixes: what the names of further ones begin with.
    :param is_usual: whether a shell or a service has them in any case.
    """

    what: str
    names: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    is_usual: bool = False


HOST_VARIABLES: Final = (
    HostVariables(
        "one git repository, or one run of git (`git rev-parse --local-env-vars`, githooks(5))",
        (
            "GIT_ALTERNATE_OBJECT_DIRECTORIES",
            "GIT_AUTHOR_DATE",
            "GIT_COMMITTER_DATE",
            "GIT_COMMON_DIR",
            "GIT_CONFIG",
            "GIT_CONFIG_COUNT",
            "GIT_CONFIG_PARAMETERS",
            "GIT_DIR",
            "GIT_GRAFT_FILE",
            "GIT_IMPLICIT_WORK_TREE",
            "GIT_INDEX_FILE",
            "GIT_INTERNAL_SUPER_PREFIX",
            "GIT_NAMESPACE",
            "GIT_NO_REPLACE_OBJECTS",
            "GIT_OBJECT_DIRECTORY",
            "GIT_PREFIX",
            "GIT_QUARANTINE_PATH",
            "GIT_REFLOG_ACTION",
            "GIT_REPLACE_REF_BASE",
            "GIT_SHALLOW_FILE",
            "GIT_WORK_TREE",
        ),
        ("GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_", "GIT_PUSH_OPTION_"),
    ),
    HostVariables(
        "one Python environment: `pip`, `uv` and `poetry` install into it",
        (
            "PIPENV_ACTIVE",
            "POETRY_ACTIVE",
            "PYTHONHOME",
            "PYTHONPATH",
            "VIRTUAL_ENV",
            "VIRTUAL_ENV_PROMPT",
        ),
    ),
    HostVariables(
        "one directory, or one build in it",
        (
            "DIRENV_DIFF",
            "DIRENV_DIR",
            "DIRENV_FILE",
            "DIRENV_WATCHES",
            "INIT_CWD",
            "MAKEFLAGS",
            "MAKELEVEL",
            "MFLAGS",
            "npm_config_local_prefix",
        ),
        ("npm_lifecycle_", "npm_package_", "__MISE_"),
    ),
    HostVariables("the directory of a shell", ("OLDPWD", "PWD", "_"), is_usual=True),
    HostVariables(
        "one service of systemd, and its sockets and secrets",
        (
            "CACHE_DIRECTORY",
            "CONFIGURATION_DIRECTORY",
            "CREDENTIALS_DIRECTORY",
            "FDSTORE",
            "INVOCATION_ID",
            "JOURNAL_STREAM",
            "LISTEN_FDNAMES",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LOGS_DIRECTORY",
            "MAINPID",
            "MANAGERPID",
            "MEMORY_PRESSURE_WATCH",
            "MEMORY_PRESSURE_WRITE",
            "NOTIFY_SOCKET",
            "RUNTIME_DIRECTORY",
            "STATE_DIRECTORY",
            "SYSTEMD_EXEC_PID",
            "WATCHDOG_PID",
            "WATCHDOG_USEC",
        ),
        is_usual=True,
    ),
    HostVariables(
        "one terminal, or one login: a multiplexer or an editor could be controlled by them",
        (
            "GPG_TTY",
            "NVIM",
            "NVIM_LISTEN_ADDRESS",
            "SSH_CLIENT",
            "SSH_CONNECTION",
            "SSH_TTY",
            "STY",
            "TMUX",
            "TMUX_PANE",
            "WINDOW",
            "ZELLIJ",
            "ZELLIJ_PANE_ID",
            "ZELLIJ_SESSION_NAME",
        ),
        is_usual=True,
    ),
    HostVariables(
        "one conversation of an agent, where that has started the daemon",
        tuple(sorted(name for agent in KNOWN_AGENTS for name in agent.variables)),
    ),
)

_NAMES: Final = frozenset(name for tie in HOST_VARIABLES for name in tie.names)
_PREFIXES: Final = tuple(prefix for tie in HOST_VARIABLES for prefix in tie.prefixes)


def is_host_variable(name: str) -> bool:
    """Return whether a variable is not handed on to agents by itself."""
    return name in _NAMES or name.startswith(_PREFIXES)


def unusual_variables(names: Iterable[str]) -> list[str]:
    """Return those that are not handed on and that not any shell or service has, in order."""
    usual = {name for tie in HOST_VARIABLES if tie.is_usual for name in tie.names}
    return sorted(name for name in names if is_host_variable(name) and name not in usual)
