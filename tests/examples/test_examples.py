"""Every example runs as a program, with a real engine or daemon."""

import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from forking import Forks
from ports import free_port
from serving import Process, agentd, answering

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 120

PROGRAMS = Forks(
    "example",
    """
import runpy, sys
import agent_orchestrator.embedded, agent_orchestrator.remote, agent_orchestrator.runners.demo
import agent_orchestrator.runners.function, agent_orchestrator.stores.sqlite
import anyio._backends._asyncio, anyio._backends._trio, httpx, hypercorn.asyncio, quart, trio

def main():
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
""",
)
"""Python programs, forked from a process that has imported their common modules."""

CONFIG = """
[providers.echo]
runner = "command"
argv = ["cat"]
output = "text"
[providers.asker]
runner = "function"
target = "asker:ask"
[routing]
default = "echo"
"""

ASKER = """
async def ask(context):
    asked = await context.ask_parent("May I?", kind="approval_request")
    return f"you said: {asked.status}"
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT")}
    return {**kept, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1", **more}


def run(name: str, *arguments: str, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    done = PROGRAMS.run(
        [str(EXAMPLES / name), *arguments],
        stdin=b"",
        cwd=cwd,
        env=environment(**env),
        timeout=TIMEOUT_S,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextmanager
def server(name: str, *arguments: str, cwd: Path, **env: str) -> Iterator[str]:
    """Run an example that serves on the address in the place of ``{}`` among its arguments."""
    address = f"127.0.0.1:{free_port()}"

    def answers() -> bool:
        assert process.poll() is None
        try:
            httpx.get(f"http://{address}/")
        except httpx.TransportError:
            return False
        return True

    with (cwd / "stderr").open("w") as errors, Path(os.devnull).open("r+") as nothing:
        process = PROGRAMS.start(
            [str(EXAMPLES / name), *(part.format(address) for part in arguments)],
            cwd=cwd,
            env=environment(**env),
            streams=[nothing.fileno(), nothing.fileno(), errors.fileno()],
        )
        try:
            wait_until(answers)
            yield f"http://{address}"
            process.terminate()
            assert process.wait(60) == 0, (cwd / "stderr").read_text()
        finally:
            process.kill()
            process.wait(60)
    assert "Traceback" not in (cwd / "stderr").read_text()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "agentd.toml").write_text(CONFIG)
    (tmp_path / "asker.py").write_text(ASKER)
    with agentd(tmp_path, env={"PYTHONPATH": str(tmp_path)}) as process:
        yield process


def test_each_example_is_short_and_tested() -> None:
    tests = Path(__file__).read_text()
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".html", ".ipynb"):
            assert len(path.read_text().splitlines()) < 70, path.name
            assert path.stem in tests, path.name


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("batch.py", (), "usage: batch.py"),
        ("batch.py", ("Review:", "a.txt"), "batch.py: "),
        ("webhooks.py", (), "usage: WEBHOOK_SECRET="),
        (
            "webhooks.py",
            ("http://127.0.0.1:9/", "127.0.0.1:0", "http://127.0.0.1:9"),
            "webhooks.py: ",
        ),
        ("custom_runner.py", (), "usage: custom_runner.py"),
    ],
)
def test_missing_argument_or_daemon_is_a_one_line_error(
    tmp_path: Path, name: str, arguments: tuple[str, ...], words: str
) -> None:
    secret = "" if not arguments else "secret"
    done = run(
        name, *arguments, cwd=tmp_path, AGENTCTL_URL="http://127.0.0.1:9", WEBHOOK_SECRET=secret
    )
    assert done.returncode == 1
    assert done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == 1


def test_asyncio_app_prints_the_events_of_each_session(tmp_path: Path) -> None:
    done = run("asyncio_app.py", "Hello", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("ann", "bob"):
        printed = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert [int(seq) for _, seq, _ in printed] == list(range(1, len(printed) + 1))
        assert printed[-1][2] == "run.completed"
    assert done.stdout.count("You wrote 5 characters") == 2


def test_start_stop_example_prints_the_answer(tmp_path: Path) -> None:
    done = run("start_stop.py", "Hello", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "You wrote 5 characters" in done.stdout


def test_fastapi_app_answers_a_request(tmp_path: Path) -> None:
    """The app's lifespan, as uvicorn runs it, and one request."""
    code = """
import anyio, httpx, sys
sys.path.insert(0, sys.argv[1])
from fastapi_app import app

async def main():
    async with app.router.lifespan_context(app) as state:
        async def with_state(scope, receive, send):
            await app({**scope, "state": state}, receive, send)
        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=60) as http:
            print((await http.post("/ask", json={"text": "Hello"})).json()["status"])

anyio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, EXAMPLES],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "completed\n", "")


def test_pytest_fixtures_example_passes(tmp_path: Path) -> None:
    """``pytest_fixtures.py``, in a project with pytest-asyncio."""
    shutil.copy(EXAMPLES / "pytest_fixtures.py", tmp_path / "test_fixtures.py")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
    )
    options = ["-q", "-p", "pytest_asyncio", "-p", "no:randomly", "-p", "no:schemathesis"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_fixtures.py"],
        cwd=tmp_path,
        env=environment(PYTEST_ADDOPTS=""),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    """``notebook.ipynb``, its cells run by a real kernel, each as a separate message."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = """
import json, sys
from jupyter_client import KernelManager

manager = KernelManager(kernel_name="python3")
manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
manager.transport = "ipc"
manager.start_kernel()
client = manager.client()
client.start_channels()
try:
    client.wait_for_ready(timeout=100)
    for cell in json.loads(sys.argv[1]):
        reply = client.execute_interactive(cell, timeout=100)
        assert reply["content"]["status"] == "ok", reply
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(cells)],
        cwd=tmp_path,
        env=environment(HOME=str(tmp_path), JUPYTER_PLATFORM_DIRS="1", PYTHONWARNINGS="ignore"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "completed\n"), done.stderr


def test_trio_app_completes_one_run_and_cancels_another(tmp_path: Path) -> None:
    done = run("trio_app.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "completed thought it over\ncanceled None\n"


def test_custom_runner_example_runs_shell_commands(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    done = run("custom_runner.py", "cd deep; echo hi", "basename $PWD", "exit 3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("completed hi", "completed deep")
    assert third.startswith("failed RunError(code='provider_error'")


def test_children_example_asks_for_approval(tmp_path: Path) -> None:
    done = run("children.py", "read it, delete it", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    asked, ended = done.stdout.splitlines()
    assert asked == "asked: May I delete it?"
    assert ended == "completed did: read it; did: delete it"


def test_batch_example_runs_each_file_once_even_if_repeated(
    daemon: Process, tmp_path: Path
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"this is {name}")
    (tmp_path / "long.txt").write_text("x" * 1_100_000)
    names = ("a.txt", "b.txt", "long.txt", "missing.txt")
    reports = [
        run("batch.py", "Read:", *names, cwd=tmp_path, AGENTCTL_URL=daemon.url) for _ in range(2)
    ]
    assert [(report.returncode, report.stderr) for report in reports] == [(1, "")] * 2
    assert reports[0].stdout == reports[1].stdout
    assert "## a.txt\n\nRead:\n\nthis is a.txt\n\n## b.txt" in reports[0].stdout
    assert "## long.txt\n\nno answer: " in reports[0].stdout
    assert "## missing.txt\n\nnot read: " in reports[0].stdout
    assert len(httpx.get(f"{daemon.url}/runs").json()["runs"]) == 2


def test_quart_app_streams_the_answer(tmp_path: Path) -> None:
    with server("quart_app.py", "{}", cwd=tmp_path) as url:
        assert 'fetch("ask"' in httpx.get(url).text
        session = httpx.post(f"{url}/ask", data={"text": "Hello"}).json()["session"]
        with httpx.stream("GET", f"{url}/said/{session}", timeout=60) as said:
            assert said.headers["content-type"] == "text/event-stream"
            lines = []
            for line in said.iter_lines():
                lines.append(line)
                if line == "event: end":
                    break  # leaving the stream is what the page does
    texts = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert texts[0].startswith("I am the built-in demo agent")
    assert "You wrote 5 characters" in texts[-1]


class _Target(BaseHTTPRequestHandler):
    posted: list[Any]
    refuses: bool

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.posted.append(document)
        self.send_response(503 if self.refuses else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def target() -> Iterator[tuple[str, list[Any]]]:
    handler = type("Target", (_Target,), {"posted": [], "refuses": False})
    with answering(handler) as url:
        yield f"{url}/results", handler.posted


def test_webhooks_become_messages_and_results_are_posted(daemon: Process, tmp_path: Path) -> None:
    def deliver(url: str, text: str, delivery: str, secret: str = "s3cret") -> int:
        signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": f"sha256={signature}", "X-Delivery": delivery}
        return httpx.post(f"{url}/hooks/builds", content=text, headers=headers).status_code

    def has_read_all() -> bool:
        """Return whether the bridge has kept that nothing is left for it: else it posts a result once more."""
        cursor = tmp_path / "webhooks.cursor"
        if not cursor.exists():
            return False
        place = {"cursor": cursor.read_text()}
        with httpx.stream("GET", f"{daemon.url}/stream", params=place) as items:
            return next(items.iter_lines(), "").startswith(": caught up")

    with target() as (results, posted):
        command = ("webhooks.py", results, "{}", daemon.url)
        with server(*command, cwd=tmp_path, WEBHOOK_SECRET="s3cret") as url:
            assert deliver(url, "it broke", "1") == 202
            assert deliver(url, "it broke", "1") == 202
            assert deliver(url, "forged", "2", secret="another") == 401
            wait_until(lambda: posted)
            wait_until(has_read_all)
        with server(*command, cwd=tmp_path, WEBHOOK_SECRET="s3cret") as url:
            assert deliver(url, "it broke again", "3") == 202
            wait_until(lambda: len(posted) == 2)
    assert [one["result"]["text"] for one in posted] == ["it broke", "it broke again"]
    assert len(httpx.get(f"{daemon.url}/sessions").json()["sessions"]) == 1
