"""The log: one line a message, and no secrets in any."""

import io
import json
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import agentd

from agentctl import starting
from agentd import logs

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
    logs.set_up(form=form, level=level, secrets=(SECRET, SECRET[:6]), stream=stream)
    return stream


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_hidden_wherever_they_stand(form: str) -> None:
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


def test_a_secret_of_few_letters_is_hidden_only_where_it_is_told_as_one() -> None:
    stream = io.StringIO()
    logs.set_up(form="json", level="info", secrets=("e",), stream=stream)
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


def test_json_lines() -> None:
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


def test_text_cannot_be_forged() -> None:
    stream = set_up("text")
    log = logging.getLogger("agentd")
    log.warning(
        'odd "name" \\ here\n12:00:00.000 INFO    all is well\x1b[31m', extra={"fields": {"a": 1}}
    )
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(
        ' WARNING odd "name" \\ here\\n12:00:00.000 INFO    all is well\\u001b[31m a=1'
    )


def test_levels() -> None:
    stream = set_up("text", "error")
    logging.getLogger("agentd").warning("no")
    logging.getLogger("agentd").error("yes")
    assert stream.getvalue().count("\n") == 1


def test_a_log_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    with agentd(tmp_path) as daemon, httpx.Client(base_url=daemon.url, timeout=20) as client:
        for _ in range(3):
            assert client.get("/health").status_code == 200
        moved = daemon.stderr_path.rename(tmp_path / "moved.log")
        daemon.signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while not daemon.stderr_path.exists() or "anew" not in daemon.stderr():
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


def test_a_long_log_is_put_aside_at_a_start(tmp_path: Path) -> None:
    log = tmp_path / "agentd.log"
    starting._keep_short(log)
    log.write_bytes(b"x" * starting.MAX_LOG)
    starting._keep_short(log)
    assert log.exists()
    log.write_bytes(b"x" * (starting.MAX_LOG + 1))
    starting._keep_short(log)
    assert not log.exists()
    assert (tmp_path / "agentd.log.1").stat().st_size == starting.MAX_LOG + 1
