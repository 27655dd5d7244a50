"""The package as `pip install` installs it: its files, its programs, and a run with them."""

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkout import ROOT, wait_for_file

PACKAGES = ["agent_orchestrator", "agentd", "agentctl"]
SDIST_EXTRAS = {"pyproject.toml", "README.md", "LICENSE"}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def build(target: str, source: Path, folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=source,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it, with nothing fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "-w", str(folder), str(ROOT)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a new environment, with the dependencies of the running one."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60
    )
    command = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install"]
    subprocess.run([*command, "--quiet", "--no-deps", "--no-index", wheel], check=True, timeout=60)
    # A path file adds the folder but does not read the path files in it, so that the editable install
    # of this checkout stays out of sight.
    [own] = environment.glob("lib/python3*/site-packages")
    (own / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return environment


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Run a program of the environment from a folder that has nothing to do with the checkout."""

    def run_program(name: str, *argv: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [installed / "bin" / name, *argv],
            cwd=tmp_path,
            env=environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run_program


def environment() -> dict[str, str]:
    """Return our environment without settings for another daemon."""
    ours = ("AGENTD_", "AGENTCTL_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@contextmanager
def daemon(agentd: Path, folder: Path) -> Iterator[str]:
    ready = folder / "ready.json"
    process = subprocess.Popen(
        [agentd, "--port", "0", "--db", folder / "data.db", "--ready-file", ready],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            wait_for_file(ready, process)
            yield json.loads(ready.read_text())["url"]
        finally:
            process.terminate()
            try:
                process.communicate(timeout=60)
            finally:
                process.kill()
    assert process.returncode == 0


def sources() -> set[str]:
    """Every file of the packages that a checkout has."""
    source = ROOT / "src"
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    return {str(path) for path in files if "__pycache__" not in path.parts}


def test_wheel_contains_the_sources_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {name for name in names if ".dist-info/" in name}

    assert names - info == sources()
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(name.endswith(".sql") for name in names), "the store's migrations"
    assert any(name.endswith("/licenses/LICENSE") for name in info)


def test_a_wheel_built_from_the_source_distribution_is_the_same(
    wheel: Path, tmp_path: Path
) -> None:
    archive = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    [source] = (tmp_path / "unpacked").iterdir()

    assert {path.name for path in source.iterdir()} >= SDIST_EXTRAS
    rebuilt = build("wheel", source, tmp_path / "wheel")
    assert rebuilt.name == wheel.name
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(rebuilt) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        for name in first.namelist():
            assert first.read(name) == second.read(name), name


@pytest.mark.parametrize("name", ["agentd", "agentctl"])
def test_installed_programs_print_their_version(run: Run, wheel: Path, name: str) -> None:
    done = run(name, "--version")

    assert done.returncode == 0, done.stderr
    assert wheel.name.split("-")[1] in done.stdout


def test_installed_packages_are_imported_from_the_wheel(run: Run, installed: Path) -> None:
    code = "import sys, {0}; print({0}.__file__)"
    for package in PACKAGES:
        done = run("python", "-W", "error", "-c", code.format(package))
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).is_relative_to(installed)


def test_the_installed_daemon_runs_an_agent(run: Run, installed: Path, tmp_path: Path) -> None:
    with daemon(installed / "bin/agentd", tmp_path) as url:
        workspace = tmp_path / "workspace"
        workspace.mkdir()
        asked = run(
            "agentctl", "--url", url, "ask", "Hello", "--provider", "demo", "--cwd", str(workspace)
        )
        assert asked.returncode == 0, asked.stderr
        listed = run("agentctl", "--url", url, "--format", "json", "run", "list")

    [only] = json.loads(listed.stdout)["runs"]
    assert (only["provider"], only["status"]) == ("demo", "completed")
    assert only["result"]["text"] in asked.stdout


@pytest.mark.timeout(300)
def test_mypy_checks_the_examples_against_the_installed_package(
    installed: Path, tmp_path: Path
) -> None:
    """Strictly: a public name without a type, or with a wrong one, would show in its users."""
    mypy = shutil.which("mypy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert mypy is not None
    (tmp_path / "user.py").write_text(
        "from agent_orchestrator import connect\n\nconnect(no_such_argument=1)\n"
    )
    done = subprocess.run(
        [mypy, "--python-executable", installed / "bin/python", "--strict", "user.py",
         *sorted((ROOT / "examples").glob("*.py"))],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    [*errors, summary] = done.stdout.splitlines()
    assert errors, done.stderr
    assert all(line.startswith("user.py:3:") for line in errors), done.stdout
    assert "no_such_argument" in errors[0]
    assert summary.startswith("Found "), done.stdout
