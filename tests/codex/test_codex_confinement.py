"""How codex is told to keep its agents from files of the host."""

from typing import Any

import pytest

from agent_orchestrator.ports.runner import ProtectedPaths
from agent_orchestrator.runners.codex.confinement import (
    ExecConfinement,
    Workspace,
    exec_confinement,
    profiles,
)

WRITING = "permissions.agent-orchestrator-workspace-write"
READING = "permissions.agent-orchestrator-read-only"
PROTECTED = ProtectedPaths(("/p/repo/.data",), ("/p/repo/.data/db", "/state"))
KEPT = {"/p/repo/.data": "read", "/p/repo/.data/db": "deny", "/state": "deny"}


def test_a_profile_extends_the_sandbox_mode_by_the_protected_paths() -> None:
    found = profiles(PROTECTED, "/p/repo", Workspace(), None)
    assert found[READING] == {"extends": ":read-only", "filesystem": KEPT}
    assert found[WRITING] == {"extends": ":workspace", "filesystem": KEPT}


@pytest.mark.parametrize(
    ("cwd", "pinned"),
    [
        ("/p", {"/p/repo"}),
        ("/", {"/p", "/p/repo"}),
        ("/p/repo/.data", set()),
        ("/elsewhere", set()),
        ("/p/rep", set()),
    ],
)
def test_directories_down_to_a_protected_path_cannot_be_moved(cwd: str, pinned: set[str]) -> None:
    found = profiles(PROTECTED, cwd, Workspace(exclude_slash_tmp=True), None)[WRITING]["filesystem"]
    assert {path for path, access in found.items() if access == "write"} == pinned


def test_workspace_settings_are_kept_in_a_profile() -> None:
    workspace = Workspace.of(
        {
            "writable_roots": ["/w"],
            "network_access": True,
            "exclude_slash_tmp": True,
            "exclude_tmpdir_env_var": True,
        }
    )
    found = profiles(ProtectedPaths(("/w/a/b",)), "/p", workspace, "/w/tmp")[WRITING]
    assert found["workspace_roots"] == {"/w": True}
    assert found["network"] == {"enabled": True}
    kept = {"/w/a/b": "read", "/w/a": "write", ":slash_tmp": "read", ":tmpdir": "read"}
    assert found["filesystem"] == kept
    assert Workspace.of(None) == Workspace.of({"writable_roots": 7}) == Workspace()


def _exec(
    extra_args: tuple[str, ...] = (), sandbox: Any = None, **settings: Any
) -> ExecConfinement:
    return exec_confinement(
        PROTECTED,
        cwd="/p/repo",
        sandbox=sandbox,
        extra_args=extra_args,
        settings=settings,
        tmpdir=None,
    )


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "read-only"),
        ({"sandbox": "workspace-write"}, "workspace-write"),
        ({"sandbox_mode": "workspace-write"}, "workspace-write"),
        ({"default_permissions": ":workspace"}, "workspace-write"),
        ({"extra_args": ("-s", "workspace-write")}, "workspace-write"),
        ({"extra_args": ("--sandbox=workspace-write",)}, "workspace-write"),
        ({"extra_args": ("-sworkspace-write",), "sandbox": "read-only"}, "read-only"),
        ({"sandbox_mode": "danger-full-access", "sandbox": "read-only"}, "read-only"),
    ],
)
def test_exec_gets_the_profile_of_its_sandbox_mode(given: dict[str, Any], mode: str) -> None:
    found = _exec(**given)
    assert found.config["default_permissions"] == f"agent-orchestrator-{mode}"
    assert found.sandbox is None
    assert found.extra_args == ()  # codex goes by -s rather than by a profile


def test_the_users_profile_is_extended() -> None:
    found = _exec(default_permissions="mine")
    profile = found.config[f"permissions.{found.config['default_permissions']}"]
    assert profile == {"extends": "mine", "filesystem": KEPT}


@pytest.mark.parametrize(
    "given",
    [
        {"sandbox": "danger-full-access"},
        {"sandbox_mode": "danger-full-access"},
        {"default_permissions": ":danger-full-access"},
        {"extra_args": ("--yolo",)},
        {"extra_args": ("-s", "danger-full-access")},
    ],
)
def test_without_a_sandbox_no_profile_is_used(given: dict[str, Any]) -> None:
    assert _exec(**given) == ExecConfinement(given.get("sandbox"), {}, given.get("extra_args", ()))


LIFTING = [
    ("--yolo",),
    ("--dangerously-bypass-approvals-and-sandbox",),
    ("-s", "danger-full-access"),
    ("-sdanger-full-access",),
    ("-s=danger-full-access",),
    ("--sandbox", "danger-full-access"),
    ("--sandbox=danger-full-access",),
    ("--full-auto",),
    ("-c", "sandbox_mode=danger-full-access"),
    ("-c", 'sandbox_mode = "danger-full-access"'),
    ("-csandbox_mode=danger-full-access",),
    ("-c=sandbox_mode=danger-full-access",),
    ("--config", "sandbox_mode=danger-full-access"),
    ("--config=sandbox_mode=danger-full-access",),
    ("-c", '"sandbox_mode"="danger-full-access"'),
    ("-c", "default_permissions=:danger-full-access"),
]


@pytest.mark.parametrize("protected", [PROTECTED, ProtectedPaths()], ids=["protected", "open"])
@pytest.mark.parametrize("lifting", LIFTING, ids=" ".join)
def test_no_extra_argument_disables_the_requested_sandbox(
    lifting: tuple[str, ...], protected: ProtectedPaths
) -> None:
    args = ("--search", *lifting, "-c", "a=1", *lifting)
    found = exec_confinement(
        protected,
        cwd="/p/repo",
        sandbox="read-only",
        extra_args=args,
        settings={"sandbox_mode": "danger-full-access"},
        tmpdir=None,
    )
    assert found.extra_args == ("--search", "-c", "a=1")
    if protected:
        assert found.config["default_permissions"] == "agent-orchestrator-read-only"
    else:
        assert found.sandbox == "read-only"


def test_extra_arguments_that_do_not_set_the_sandbox_are_kept() -> None:
    args = ("-c", "-s", "--search", "-s", "read-only", "-p", "x")
    assert _exec(args).extra_args == ("-c", "-s", "--search", "-p", "x")
