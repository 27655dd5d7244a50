"""Configures codex to deny its commands and patches the daemon's files.

Codex's sandbox modes cannot exclude paths. Its permission profiles can: a profile extends a mode and names
paths (codex 0.169; https://developers.openai.com/codex/permissions). A profile replaces
``sandbox_workspace_write`` of codex's configuration, so those settings are copied into it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from attrs import field, frozen

from agent_orchestrator.domain.model import Sandbox
from agent_orchestrator.ports.runner import ProtectedPaths

Mode = Literal["read-only", "workspace-write"]

_EXTENDS: Final[Mapping[Mode, str]] = {
    "read-only": ":read-only",
    "workspace-write": ":workspace",
}


def profile_name(mode: Mode) -> str:
    """Return the name of the profile for a sandbox mode with denied paths."""
    return f"agent-orchestrator-{mode}"


@frozen
class Workspace:
    """The settings ``sandbox_workspace_write`` of codex's configuration."""

    writable_roots: tuple[str, ...] = ()
    network_access: bool = False
    exclude_tmpdir_env_var: bool = False
    exclude_slash_tmp: bool = False

    @classmethod
    def of(cls, settings: Any) -> "Workspace":
        """Return the settings in a table of codex's configuration; the defaults if it is not a
        table.
        """
        if not isinstance(settings, Mapping):
            return cls()
        roots = settings.get("writable_roots")
        return cls(
            tuple(str(root) for root in roots) if isinstance(roots, list) else (),
            settings.get("network_access") is True,
            settings.get("exclude_tmpdir_env_var") is True,
            settings.get("exclude_slash_tmp") is True,
        )


def profiles(
    protected: ProtectedPaths, cwd: str, workspace: Workspace, tmpdir: str | None
) -> dict[str, Any]:
    """Return the overrides of codex's configuration that define a profile for each mode.

    :param cwd: codex's working directory.
    :param tmpdir: the ``TMPDIR`` of its commands.
    """
    return {
        f"permissions.{profile_name('read-only')}": {
            "extends": _EXTENDS["read-only"],
            "filesystem": _entries(protected),
        },
        f"permissions.{profile_name('workspace-write')}": _writable_profile(
            protected, cwd, workspace, tmpdir
        ),
    }


def _writable_profile(
    protected: ProtectedPaths, cwd: str, workspace: Workspace, tmpdir: str | None
) -> dict[str, Any]:
    entries = _entries(protected)
    roots = [cwd, *workspace.writable_roots]
    for excluded, name, path in (
        (workspace.exclude_slash_tmp, ":slash_tmp", "/tmp"),  # noqa: S108 - codex's own root
        (workspace.exclude_tmpdir_env_var, ":tmpdir", tmpdir),
    ):
        if excluded:
            entries[name] = "read"
        elif path:
            roots.append(path)
    for folder in _parent_directories(entries, [os.path.realpath(root) for root in roots]):
        entries.setdefault(folder, "write")
    profile: dict[str, Any] = {"extends": _EXTENDS["workspace-write"], "filesystem": entries}
    if workspace.writable_roots:
        profile["workspace_roots"] = dict.fromkeys(workspace.writable_roots, True)
    if workspace.network_access:
        profile["network"] = {"enabled": True}
    return profile


def _entries(protected: ProtectedPaths) -> dict[str, str]:
    return dict.fromkeys(protected.read_only, "read") | dict.fromkeys(protected.secret, "deny")


def _parent_directories(entries: Mapping[str, str], roots: Sequence[str]) -> list[str]:
    """Return the directories between writable roots and the protected paths in them.

    Codex mounts the paths that a profile names. A directory that is not a mount could be moved away
    with the protected path in it, and replaced.
    """
    folders: dict[str, None] = {}
    for path in entries:
        for root in roots:
            folder = os.path.dirname(path)  # noqa: PTH120 - no entry need be a path
            while folder.startswith(root.rstrip("/") + "/") and folder not in roots:
                folders[folder] = None
                folder = os.path.dirname(folder)  # noqa: PTH120
    protected = [f"{path}/" for path, access in entries.items() if access != "write"]
    return [folder for folder in folders if not f"{folder}/".startswith(tuple(protected))]


@frozen
class ExecConfinement:
    """The confinement of one ``codex exec``.

    :param sandbox: the value for ``-s``; None omits the option.
    :param config: overrides of its configuration.
    :param extra_args: the user's arguments without those that choose a sandbox.
    """

    sandbox: Sandbox | None
    config: Mapping[str, Any] = field(factory=dict)
    extra_args: tuple[str, ...] = ()


def exec_confinement(
    protected: ProtectedPaths,
    *,
    cwd: str,
    sandbox: Sandbox | None,
    extra_args: Sequence[str],
    settings: Mapping[str, Any],
    tmpdir: str | None,
) -> ExecConfinement:
    """Return the sandbox and denied paths of a ``codex exec``.

    :param sandbox: the requested sandbox, which no argument may loosen. If it is None, the
        arguments decide, then codex's settings, then codex's default for ``exec``: read-only.
    :param settings: codex's configuration.
    """
    if sandbox is not None:
        remaining, named = _strip_sandbox_arguments(extra_args)
        if named in (None, *_SANDBOXES):  # codex refuses any other
            extra_args = remaining
    if not protected or any(argument in _NO_SANDBOX for argument in extra_args):
        return ExecConfinement(sandbox, {}, tuple(extra_args))
    args, chosen = _strip_sandbox_arguments(extra_args)
    own_profile = settings.get("default_permissions")
    mode = sandbox or chosen or settings.get("sandbox_mode")
    if mode is None and isinstance(own_profile, str) and not own_profile.startswith(":"):
        name = profile_name("workspace-write")
        profile = {"extends": own_profile, "filesystem": _entries(protected)}
        return ExecConfinement(
            None, {"default_permissions": name, f"permissions.{name}": profile}, args
        )
    mode = _MODES.get(mode or str(own_profile), None if mode else "read-only")
    if mode is None:  # none, or one that only codex knows
        return ExecConfinement(sandbox, {}, tuple(extra_args))
    workspace = Workspace.of(settings.get("sandbox_workspace_write"))
    config = profiles(protected, cwd, workspace, tmpdir)
    return ExecConfinement(None, {"default_permissions": profile_name(mode), **config}, args)


_SANDBOXES: Final = get_args(Sandbox)

_MODES: Final[Mapping[str, Mode | None]] = {
    "read-only": "read-only",
    "workspace-write": "workspace-write",
    ":read-only": "read-only",
    ":workspace": "workspace-write",
    ":danger-full-access": None,
}

_NO_SANDBOX: Final = ("--dangerously-bypass-approvals-and-sandbox", "--yolo")

CHOOSING_KEYS: Final = ("sandbox_mode", "default_permissions")
"""Keys of codex's configuration that choose a sandbox."""

_TAKING_VALUES: Final = ("--enable", "--disable", "-p", "--profile", "-m", "--model")


def _strip_sandbox_arguments(extra_args: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Return arguments without those that choose a sandbox, and the mode of ``-s`` or ``--sandbox``."""
    remaining: list[str] = []
    mode: str | None = None
    words = iter(extra_args)
    for argument in words:
        if argument in ("-s", "--sandbox"):
            mode = next(words, None)
        elif argument.startswith("--sandbox="):
            mode = argument.partition("=")[2]
        elif argument.startswith("-s") and not argument.startswith("--"):
            mode = argument[2:].removeprefix("=")
        elif argument in ("-c", "--config"):
            pair = [value for value in [next(words, None)] if value is not None]
            remaining += [] if pair and _chooses_sandbox(pair[0]) else [argument, *pair]
        elif argument.startswith(("-c", "--config=")):
            pair_text = argument.removeprefix("--config=").removeprefix("-c").removeprefix("=")
            remaining += [] if _chooses_sandbox(pair_text) else [argument]
        elif argument == "--full-auto":
            mode = mode or "workspace-write"
        elif argument not in _NO_SANDBOX:
            remaining.append(argument)
            if argument in _TAKING_VALUES:
                remaining.extend(value for value in [next(words, None)] if value is not None)
    return tuple(remaining), mode


def _chooses_sandbox(pair: str) -> bool:
    """Return whether an override of codex's configuration, ``key=value``, chooses a sandbox."""
    return pair.partition("=")[0].strip().strip("\"'") in CHOOSING_KEYS
