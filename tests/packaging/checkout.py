"""A throw-away checkout of a tiny project under this project's own `bin/`."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# A minimal project, so that the set-up scripts run for real and without a network: its build
# backend is a file in it, its lock files are empty, its programs print their arguments.
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "agent-orchestrator"
version = "0.0.1"
"""
BACKEND = """\
import os
import zipfile
from pathlib import Path
from typing import Any

INFO = "agent_orchestrator-0.0.1.dist-info"


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    if gate := os.environ.get("TEST_GATE"):
        with open(gate, "w") as announce:  # blocks until the test reads
            announce.write("building")
        with open(gate) as forever:  # blocks until the test writes, which it never does
            forever.read()
    name = "agent_orchestrator-0.0.1-py3-none-any.whl"
    files = {
        "probe.py": Path("probe.py").read_text(),
        f"{INFO}/METADATA": "Metadata-Version: 2.1\\nName: agent-orchestrator\\nVersion: 0.0.1\\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{INFO}/entry_points.txt": "[console_scripts]\\nagentd = probe:main\\nagentctl = probe:main\\n",
    }
    record = "".join(f"{path},,\\n" for path in [*files, f"{INFO}/RECORD"])
    with zipfile.ZipFile(Path(wheel_directory, name), "w") as wheel:
        for path, text in {**files, f"{INFO}/RECORD": record}.items():
            wheel.writestr(path, text)
    return name


build_wheel = build_editable
"""
PROBE = """\
import json
import os
import sys


def main():
    program = os.path.basename(sys.argv[0])
    print(json.dumps({"program": program, "argv": sys.argv[1:], "cwd": os.getcwd(), "prefix": sys.prefix}))
"""


PYTHON = """\
#!/usr/bin/env bash
# Making an environment takes longer than all the rest, so later ones are copies of the first.
set -e
case "$*" in
    *version_info*) printf '%s\\n' "$0" ;;
    "-I -m venv "*)
        if [[ -d {made} ]]; then
            cp -a {made}/. "$4"
        else
            {python} "$@"
            cp -a "$4" {made}.new
            rm -f {made}.new/setup.*
            mv {made}.new {made}
        fi
        ;;
    *) exec {python} "$@" ;;
esac
"""


def copying_python(folder: Path) -> Path:
    """Return a Python whose ``-m venv`` makes one environment and then copies it."""
    path = folder / "python3"
    real = shlex.quote(os.path.realpath(sys._base_executable))  # type: ignore[attr-defined]
    path.write_text(PYTHON.format(made=shlex.quote(str(folder / "made")), python=real))
    path.chmod(0o755)
    return path


class Checkout:
    """A checkout of the tiny project with this project's own `bin/`.

    :param python: what its environments are made with, if not the first on PATH.
    """

    def __init__(self, root: Path, python: Path | None = None) -> None:
        self.root = root
        self._own = {} if python is None else {"PYTHON": str(python)}

    @classmethod
    def create(cls, root: Path, python: Path | None = None) -> "Checkout":
        shutil.copytree(ROOT / "bin", root / "bin")
        for lock in ("run.txt", "dev.txt"):
            (root / "bin/locks" / lock).write_text("# nothing\n")
        (root / "pyproject.toml").write_text(PYPROJECT)
        (root / "backend.py").write_text(BACKEND)
        (root / "probe.py").write_text(PROBE)
        (root.parent / "temporary").mkdir(exist_ok=True)
        return cls(root, python)

    def start(
        self, *command: str | Path, cwd: Path | None = None, **env: str
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd or self.root,
            env={
                **os.environ,
                **self._own,
                "REQUIRE_REAL_AGENTS": "",
                # A pip that is killed leaves its own folders there.
                "TMPDIR": str(self.root.parent / "temporary"),
                **env,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *command: str | Path, cwd: Path | None = None, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        with self.start(*command, cwd=cwd, **env) as process:
            return finish(process)

    def program(self, name: str, *argv: str, cwd: Path | None = None) -> dict[str, object]:
        """Run a wrapper and return what its program printed."""
        done = self.run(self.root / "bin" / name, *argv, cwd=cwd)
        assert done.returncode == 0, done.stderr
        seen: dict[str, object] = json.loads(done.stdout)
        return seen


def finish(
    process: "subprocess.Popen[str]", timeout: float = 60
) -> "subprocess.CompletedProcess[str]":
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:  # the test's timeout included
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for_file(path: Path, process: "subprocess.Popen[Any]", timeout: float = 30) -> None:
    """Wait until the process has written the file; fail if it has ended without it."""
    deadline = time.monotonic() + timeout
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, f"ended with {process.returncode} before {path.name}"
        assert time.monotonic() < deadline, f"no {path.name} after {timeout} s"
        time.sleep(0.01)
