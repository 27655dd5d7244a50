"""The log: one line per message, no secrets, and limited size."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import httpx
import pytest
from serving import agentd

from agentctl import daemon_process
from agentd import logs
from agentd.cli import main
from agentd.logs import LogFile

SECRET = 's3cr3t-"tok\\en"'


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers, root.level)
    yield
    root.handlers, root.level = before
    logging.captureWarnings(capture=False)
    for name in ("agentd", "agent_orchestrator"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def set_up(form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure_logging(form=form, level=level, secrets=(SECRET, SECRET[:6]), stream=stream)
    return stream


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_hidden_anywhere_in_the_log(form: str) -> None:
    stream = set_up(form)
    log = logging.getLogger("agentd.test")
    log.info(
        "token %s", SECRET, extra={"fields": {"header": f"Bearer {SECRET}", "x": "bearer.abc123"}}
    )
    error = ValueError(f"Authorization: Bearer unknown-{SECRET}")
    log.error("failed", exc_info=error)
    text = stream.getvalue()
    assert "s3cr3t" not in text
    assert "abc123" not in text
    assert "unknown-" not in text
    assert "tok" not in text.replace("token ", "")
    assert text.count("Bearer [hidden]") == 2


def test_short_secret_is_hidden_only_where_a_token_is_expected() -> None:
    stream = io.StringIO()
    logs.configure_logging(form="json", level="info", secrets=("e",), stream=stream)
    log = logging.getLogger("agentd.test")
    log.info("Authorization: Bearer e!x", extra={"fields": {"authorization": "Basic dGU6eA=="}})
    log.info("%s", {"Authorization": "e", "other": "kept"})
    log.info("%s", [(b"authorization", b"token e"), "the authorization header is missing"])
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "Authorization: Bearer [hidden]"
    assert first["authorization"] == "Basic [hidden]"
    assert second["message"] == "{'Authorization': '[hidden]', 'other': 'kept'}"
    assert "token [hidden]'" in third["message"]
    assert third["message"].endswith("the authorization header is missing']")


def test_json_log_has_one_object_per_line() -> None:
    stream = set_up("auto")
    log = logging.getLogger("agentd.test")
    log.info("two\nlines \u2028 %s", "é", extra={"fields": {"count": 3, "path": "/x"}})
    log.debug("not shown")
    logging.getLogger("other").info("not shown")
    logging.getLogger("other").warning("shown")
    first, second = (json.loads(line) for line in stream.getvalue().split("\n")[:-1])
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "agentd.test",
        "message": "two\nlines \u2028 é",
        "count": 3,
        "path": "/x",
    }
    assert (second["level"], second["message"]) == ("warning", "shown")


def test_text_log_escapes_control_characters() -> None:
    stream = set_up("text")
    log = logging.getLogger("agentd")
    log.warning(
        'odd "name" \\ here\n12:00:00.000 INFO    all is well\x1b[31m', extra={"fields": {"a": 1}}
    )
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(
        ' WARNING odd "name" \\ here\\n12:00:00.000 INFO    all is well\\u001b[31m a=1'
    )


def test_log_level_is_respected() -> None:
    stream = set_up("text", "error")
    logging.getLogger("agentd").warning("no")
    logging.getLogger("agentd").error("yes")
    assert stream.getvalue().count("\n") == 1


def test_log_is_reopened_on_sighup(tmp_path: Path) -> None:
    with agentd(tmp_path) as daemon, httpx.Client(base_url=daemon.url, timeout=60) as client:
        for _ in range(3):
            assert client.get("/health").status_code == 200
        moved = daemon.stderr_path.rename(tmp_path / "moved.log")
        daemon.signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while not daemon.stderr_path.exists() or "reopened" not in daemon.stderr():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert daemon.stderr_path.stat().st_mode & 0o777 == 0o600
        assert client.get("/sessions").status_code == 200
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert "/sessions" not in moved.read_text()
        assert "/sessions" in daemon.stderr()
        assert "stopped" in daemon.stderr()
        assert "/health" not in moved.read_text() + daemon.stderr()


LIMIT = 10_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """An empty log."""
    path = tmp_path / "agentd.log"
    path.touch(0o600)
    return path


@contextmanager
def bounded(path: Path, limit: int = LIMIT) -> Iterator[tuple[LogFile, TextIO]]:
    with path.open("a", buffering=1) as stream:
        file = LogFile(stream.fileno(), limit=limit)
        yield file, file.rotating(stream)


def test_log_is_rotated_while_it_is_written(log: Path) -> None:
    aside = log.with_name("agentd.log.1")
    with bounded(log) as (_, stream):
        for number in range(2_000):
            print(f"{number:06}", "x" * 92, file=stream)
            assert log.stat().st_size <= LIMIT + 100
    lines = (aside.read_text() + log.read_text()).splitlines()
    numbers = [int(line[:6]) for line in lines]
    assert numbers == list(range(2_000 - len(numbers), 2_000))
    assert LIMIT < aside.stat().st_size <= LIMIT + 100
    for path in (log, aside):
        assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in log.parent.iterdir()) == [log.name, aside.name]


def test_log_is_rotated_while_threads_write(log: Path) -> None:
    with bounded(log) as (_, stream):

        def write() -> None:
            for _ in range(300):
                stream.write("x" * 99 + "\n")

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert log.stat().st_size <= LIMIT + 500


def test_rotation_does_not_replace_a_foreign_file(log: Path) -> None:
    aside, moved = log.with_name("agentd.log.1"), log.with_name("moved")
    with bounded(log) as (_, stream):
        log.rename(moved)
        log.write_text("somebody else's")
        stream.write("x" * (LIMIT + 1) + "\n")
        stream.write("more\n")
    assert not aside.exists()
    assert log.read_text() == "somebody else'smore\n"
    assert moved.stat().st_size == LIMIT + 2


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "directory"])
def test_log_stays_in_the_old_file_if_the_new_one_is_not_regular(
    log: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    victim, moved = log.with_name("victim"), log.with_name("moved")
    if kind != "dangling":
        victim.write_text("precious")
    with bounded(log) as (file, stream):
        log.rename(moved)
        if kind == "pipe":
            os.mkfifo(log)
        elif kind == "directory":
            log.mkdir()
        else:
            log.symlink_to(victim)
        for _ in range(3 * LIMIT // 100):
            stream.write("x" * 99 + "\n")
        with pytest.raises(OSError, match=r"."):
            file.reopen()
    assert moved.stat().st_size == 3 * LIMIT
    assert victim.exists() == (kind != "dangling")
    assert kind == "dangling" or victim.read_text() == "precious"
    # Each failed rotation is logged once.
    assert 1 <= len(caplog.records) <= 3


def test_log_files_are_protected_from_agents(log: Path) -> None:
    show = (
        "import json; from agentd.own_files import protection; from agentd.settings import Settings;"
        "print(json.dumps(protection(Settings())('/').read_only))"
    )

    def kept() -> set[str]:
        with log.open("ab") as stream:
            run = [sys.executable, "-c", show]
            done = subprocess.run(run, stdout=-1, stderr=stream, cwd=log.parent, check=True)
        return set(json.loads(done.stdout))

    assert kept() == {str(log)}
    aside = log.with_name(f"{log.name}.1")
    aside.touch()
    assert kept() == {str(log), str(aside)}


def test_daemon_rotates_its_log(tmp_path: Path) -> None:
    with agentd(tmp_path, "--log-max-mb", "1") as daemon:
        log = daemon.stderr_path
        aside = log.with_name(f"{log.name}.1")
        with httpx.Client(base_url=daemon.url, timeout=60) as client:
            # Earlier content counts, and so do other writers.
            with log.open("ab") as stream:
                stream.write(b"x" * (2**20 - 1) + b"\n")
            assert client.get("/sessions").status_code == 200
            assert client.get("/runs").status_code == 200
            assert aside.stat().st_size > 2**20
            # SIGHUP still works.
            log.rename(tmp_path / "moved.log")
            daemon.signal(signal.SIGHUP)
            deadline = time.monotonic() + 60
            while not log.exists() or "reopened" not in daemon.stderr():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert client.get("/requests").status_code == 200
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert "/requests" in daemon.stderr()
        assert log.stat().st_mode & 0o777 == 0o600


def test_daemon_start_passes_the_log_limit() -> None:
    assert daemon_process.LOG_OPTIONS[0] in {option.opts[0] for option in main.params}
