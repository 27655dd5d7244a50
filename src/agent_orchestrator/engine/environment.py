"""The variables of an engine's environment that agents do not inherit.

These variables belong to one directory or process, such as the shell that started the engine. They
are wrong for an agent, which works elsewhere and lives longer.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from attrs import frozen

from agent_orchestrator.known_runners import KNOWN_AGENTS


@frozen
class HostVariables:
    """Variables that belong to one thing, such as a directory.

    :param subject: that thing.
    :param names: the variables.
    :param prefixes: prefixes of the names of more variables.
    :param is_usual: whether every shell or service has them.
    """

    subject: str
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
            "KITTY_LISTEN_ON",
            "NVIM",
            "NVIM_LISTEN_ADDRESS",
            "SSH_CLIENT",
            "SSH_CONNECTION",
            "SSH_TTY",
            "STY",
            "TMUX",
            "TMUX_PANE",
            "VSCODE_IPC_HOOK_CLI",
            "WEZTERM_PANE",
            "WEZTERM_UNIX_SOCKET",
            "WINDOW",
            "ZELLIJ",
            "ZELLIJ_PANE_ID",
            "ZELLIJ_SESSION_NAME",
        ),
        is_usual=True,
    ),
    HostVariables(
        "one conversation of an agent, if an agent started the daemon",
        tuple(sorted(name for agent in KNOWN_AGENTS for name in agent.variables)),
    ),
)

_NAMES: Final = frozenset(name for group in HOST_VARIABLES for name in group.names)
_PREFIXES: Final = tuple(prefix for group in HOST_VARIABLES for prefix in group.prefixes)


@lru_cache(maxsize=4096)  # each run asks about all variables of the daemon
def is_host_variable(name: str) -> bool:
    """Return whether agents do not inherit a variable by default."""
    return name in _NAMES or name.startswith(_PREFIXES)


def unusual_variables(names: Iterable[str]) -> list[str]:
    """Return, sorted, the variables that agents do not inherit and that are unusual for the engine."""
    usual = {name for group in HOST_VARIABLES if group.is_usual for name in group.names}
    return sorted(name for name in names if is_host_variable(name) and name not in usual)
