"""What takes long is told of at a terminal, and to nobody else."""

import os
import pty
import re
import socket
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from driving import FORKS, PATIENCE_S, environment, run

SHOWN = re.compile(r"\r[^\r\n]*waiting for agentd \(\d+ s\)[^\r\n]*\x1b\[K")
WIPED = "\r\x1b[K"
ANSWER = b'{"sessions": [], "next_cursor": null}'


@contextmanager
def slow_daemon(answer: threading.Event, limit_s: float) -> Iterator[tuple[str, list[bytes]]]:
    """Answer one request when told to, or so late; yields the URL and what was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return
        with connection:
            connection.settimeout(PATIENCE_S)
            asked.append(connection.recv(65_536))
            answer.wait(limit_s)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                + b"content-length: %d\r\n\r\n" % len(ANSWER)
                + ANSWER
            )

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        finally:
            answer.set()
            thread.join()


def errors_on_terminal(
    cwd: Path, *arguments: str, limit_s: float = PATIENCE_S, **env: str
) -> tuple[str, list[bytes]]:
    """Return standard error, a terminal, of a call that takes long, and what it asked.

    The daemon answers once the line was drawn, or after so many seconds in which it was not.
    """
    answer = threading.Event()
    master, slave = pty.openpty()
    try:
        termios.tcsetwinsize(slave, (24, 100))
        with (
            slow_daemon(answer, limit_s) as (url, asked),
            Path(os.devnull).open("r+b") as nothing,
            FORKS.started(
                arguments,
                cwd=cwd,
                env=environment(AGENTCTL_URL=url, **({"TERM": "xterm"} | env)),
                streams=[nothing.fileno(), nothing.fileno(), slave],
            ) as process,
        ):
            os.close(slave)
            slave = -1
            shown = b""
            while chunk := _read(master):
                shown += chunk
                if SHOWN.search(shown.decode(errors="replace")):
                    answer.set()
            assert process.wait(PATIENCE_S) == 0, shown
        return shown.decode(), asked
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65_536)
    except OSError:  # Linux tells so of a terminal nobody has open any more
        return b""


def test_a_terminal_shows_a_waiting_note_that_is_erased_afterwards(tmp_path: Path) -> None:
    shown, asked = errors_on_terminal(tmp_path, "session", "list")
    assert SHOWN.search(shown)
    assert shown.rindex(WIPED) > shown.rindex("waiting for agentd")
    assert len(asked) == 1  # whoever waits asks no more often
    assert "\x1b[2m" in shown
    plain, _ = errors_on_terminal(tmp_path, "session", "list", NO_COLOR="1")
    assert SHOWN.search(plain)
    assert "\x1b[2m" not in plain


@pytest.mark.parametrize(("arguments", "env"), [(("--format", "json"), {}), ((), {"TERM": "dumb"})])
def test_json_output_and_a_dumb_terminal_show_no_waiting_note(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str]
) -> None:
    shown, _ = errors_on_terminal(tmp_path, *arguments, "session", "list", limit_s=2, **env)
    assert "waiting" not in shown
    assert "\r\x1b" not in shown


def test_a_pipe_shows_no_waiting_note(tmp_path: Path) -> None:
    with slow_daemon(threading.Event(), 2) as (url, _):
        done = run(["session", "list"], tmp_path, environment(AGENTCTL_URL=url))
    assert done.code == 0, done.err
    assert "waiting" not in done.err
