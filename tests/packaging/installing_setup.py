"""`bin/setup` and the wrappers that use it: first, second, concurrent, killed, moved, failing."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from checkout import Checkout, finish

STRANGE = ["", "a b", "it's", '"quoted"', "$HOME `id` \\ *", "-x", "--", "two\nlines", "é✓"]


@pytest.mark.parametrize("name", ["agentd", "agentctl"])
def test_wrapper_passes_on_the_arguments_and_the_directory(
    ready: Checkout, tmp_path: Path, name: str
) -> None:
    seen = ready.program(name, *STRANGE, cwd=tmp_path)

    assert seen == {
        "program": name,
        "argv": STRANGE,
        "cwd": str(tmp_path),
        "prefix": str(ready.root / ".venv"),
    }


def test_a_wrapper_works_through_symlinks_and_from_path(ready: Checkout, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "direct").symlink_to(ready.root / "bin/agentctl")
    (tmp_path / "links/chained").symlink_to("../direct")  # relative, to a link

    for command in ["./direct", str(tmp_path / "links/chained"), "links/chained"]:
        done = ready.run(command, "x y", cwd=tmp_path)
        assert json.loads(done.stdout)["argv"] == ["x y"], done.stderr
    done = ready.run("chained", cwd=tmp_path, PATH=f"{tmp_path / 'links'}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    for shell in [["sh", "-c", "cd bin && bash agentctl"], ["bash", "bin/agentctl"]]:
        assert ready.run(*shell).returncode == 0


def test_second_use_changes_and_prints_nothing(ready: Checkout) -> None:
    log = ready.root / ".venv/setup.log"
    before = log.read_text()

    done = ready.run("bin/agentctl")
    assert (done.returncode, done.stderr) == (0, "")
    done = ready.run("bin/setup", "dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert log.read_text() == before


def test_unknown_argument_is_a_usage_error(ready: Checkout) -> None:
    done = ready.run("bin/setup", "everything")
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_concurrent_first_uses_set_up_once(tmp_path: Path, python: Path) -> None:
    checkout = Checkout.create(tmp_path / "checkout", python)
    with (
        checkout.start("bin/agentctl", "one", HOME="/dev/null/nowhere") as one,
        checkout.start("bin/agentd", "two", HOME="/dev/null/nowhere") as two,
    ):
        first, second = finish(one), finish(two)

    assert json.loads(first.stdout)["argv"] == ["one"], first.stderr
    assert json.loads(second.stdout)["argv"] == ["two"], second.stderr
    assert (first.stderr + second.stderr).count("setting up") == 1
    assert (checkout.root / ".venv/setup.log").read_text().count("-m venv") == 1


def test_setup_is_repeated_after_it_was_killed(tmp_path: Path, python: Path) -> None:
    checkout = Checkout.create(tmp_path / "checkout", python)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with checkout.start("bin/setup", "run", TEST_GATE=str(gate)) as killed:
        try:
            assert gate.read_text() == "building"  # pip is in the middle of it
            killed.kill()
            killed.wait(60)
            # pip goes on without its shell, and the next set-up must wait for it.
            next_one = checkout.start("bin/agentctl", "healed")
            assert next_one.stderr is not None
            assert "waiting" in next_one.stderr.readline()
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
        with next_one:
            done = finish(next_one)
    assert json.loads(done.stdout)["argv"] == ["healed"], done.stderr
    assert "setting up" in done.stderr


def test_setup_is_repeated_in_a_moved_checkout(
    ready: Checkout, tmp_path: Path, python: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    moved = Checkout(tmp_path / "moved here", python)
    shutil.copytree(ready.root, moved.root, symlinks=True)

    assert moved.program("agentd")["prefix"] == str(moved.root / ".venv")


def test_failed_update_names_the_cause_and_keeps_the_environment(
    tmp_path: Path, python: Path
) -> None:
    checkout = Checkout.create(tmp_path / "checkout", python)
    checkout.program("agentctl")
    keepsake = checkout.root / ".venv/keepsake"
    keepsake.touch()
    lock = checkout.root / "bin/locks/run.txt"
    good = lock.read_text()

    lock.write_text("agent-orchestrator-has-no-such-dependency==1 --hash=sha256:" + "0" * 64 + "\n")
    done = checkout.run("bin/agentctl", PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "has-no-such-dependency" in done.stderr
    assert ".venv/setup.log" in done.stderr

    lock.write_text(good + "# and a change\n")
    done = checkout.run("bin/agentctl")
    assert done.returncode == 0, done.stderr
    assert "bringing" in done.stderr
    assert keepsake.exists(), "the environment was good and should not have been rebuilt"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH of the basic programs only: no python3, no npm."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in [
        "bash",
        "cat",
        "cksum",
        "dirname",
        "env",
        "find",
        "grep",
        "mkdir",
        "readlink",
        "rm",
        "tail",
        "touch",
        "uname",
    ]:
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)
    return folder


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def test_error_for_a_missing_or_old_python_names_the_version(tmp_path: Path, tools: Path) -> None:
    checkout = Checkout.create(tmp_path / "checkout")
    done = checkout.run("bin/agentctl", PATH=str(tools))
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr

    program(tools / "python3", "[[ $1 == --version ]] && echo Python 3.9.2 || exit 1")
    done = checkout.run("bin/agentctl", PATH=str(tools))
    assert done.returncode == 1
    assert "Python 3.9.2" in done.stderr


def test_error_for_a_missing_venv_module_names_the_debian_package(
    tmp_path: Path, tools: Path
) -> None:
    checkout = Checkout.create(tmp_path / "checkout")
    program(tools / "python3", 'case "$*" in *version_info*) echo "$0";; *) exit 1;; esac')
    done = checkout.run("bin/agentctl", PATH=str(tools))
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr
    assert not (checkout.root / ".venv").exists()


@pytest.fixture
def tested(tmp_path: Path, python: Path) -> Checkout:
    """A checkout that is set up, has agents to install, and a pytest that prints its arguments."""
    checkout = Checkout.create(tmp_path / "tested", python)
    done = checkout.run("bin/setup", "dev")
    assert done.returncode == 0, done.stderr
    (checkout.root / "tests").mkdir()
    (checkout.root / "tests/package-lock.json").write_text("{}")
    (checkout.root / "pytest.py").write_text("import json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    return checkout


def test_test_command_needs_npm_only_with_require_real_agents(
    tested: Checkout, tools: Path
) -> None:
    (tools / "python3").symlink_to(sys.executable)

    done = tested.run("bin/test", "-k", "a b", PATH=str(tools))
    assert json.loads(done.stdout) == ["-k", "a b"], done.stderr
    assert "skipped" in done.stderr
    assert "apt-get install npm" in done.stderr

    done = tested.run("bin/test", PATH=str(tools), REQUIRE_REAL_AGENTS="1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "REQUIRE_REAL_AGENTS" in done.stderr

    program(tools / "npm", 'echo "$@" >>npm.calls; mkdir -p tests/node_modules')
    for _ in range(2):
        done = tested.run("bin/test", PATH=str(tools), REQUIRE_REAL_AGENTS="1")
        assert done.returncode == 0, done.stderr
    calls = (tested.root / "npm.calls").read_text()
    assert calls.startswith("ci ")
    assert calls.count("\n") == 1


def test_npm_packages_may_be_the_first_set_up(tmp_path: Path, python: Path, tools: Path) -> None:
    checkout = Checkout.create(tmp_path / "new", python)
    (checkout.root / "tests/web").mkdir(parents=True)
    (checkout.root / "tests/web/package-lock.json").write_text("{}")
    (tools / "python3").symlink_to(sys.executable)
    program(tools / "npm", "mkdir -p tests/web/node_modules")
    done = checkout.run("bin/setup", "web", PATH=str(tools))
    assert done.returncode == 0, done.stderr
    done = checkout.run("bin/setup", "dev")
    assert done.returncode == 0, done.stderr
